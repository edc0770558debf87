// Do the quantisers and pruners compute what the recorded references say?
#pragma once

#include <string>
#include <vector>

#include "base/file.h"
#include "base/result.h"

namespace fastserve {

/// One quantity of one matrix beside its tolerance.
struct QuantisationCheck {
  std::string quantity;  ///< "gauss: q4_0 codes, differing"
  double error = 0, tolerance = 0;
  bool passed = false;
  bool skipped = false;  ///< a listed method that this build does not have; counts as passed
};

/// Compares with the quant.safetensors and quant.json of `directory`: for every matrix "NAME.W" the
/// codes, scales, zeros, ggml blocks and masks recorded beside it (exact), the channel norms of
/// "X", and the relative output error ||X (W - W')^T|| / ||X W^T|| of each method listed. What is
/// not recorded is not checked; methods that only the list has are skipped. kCorrupt when tensors
/// contradict each other.
Result<std::vector<QuantisationCheck>> check_quantisation(const Path& directory);

}  // namespace fastserve
