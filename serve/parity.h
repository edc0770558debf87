// The sampler held against recorded ground truth.
#pragma once

#include <string>
#include <vector>

#include "base/file.h"

namespace fastserve {

struct SamplingCheck {
  std::string quantity;  ///< "sampling top_p, probabilities, max abs"
  double error = 0, tolerance = 0;
  bool passed = false;
  std::string note;  ///< what differs
};

/// Checks every sample.probs.* of `directory`/reference.safetensors, with the settings that
/// reference.json records. Empty when the file holds no sampling reference.
Result<std::vector<SamplingCheck>> check_sampling(const Path& directory);

}  // namespace fastserve
