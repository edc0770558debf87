// Does this build compute what Hugging Face computes? One model directory with its recorded truth.
#pragma once

#include <string>
#include <vector>

#include "base/file.h"
#include "model/device.h"

namespace fastserve {

/// One quantity beside its tolerance.
struct ParityCheck {
  std::string quantity;  ///< "logits, largest difference"
  double error = 0;
  double tolerance = 0;
  bool passed = false;
  bool skipped = false;  ///< the reference does not hold it; counts as passed
  std::string note;      ///< the worst tensor, or why it was skipped
};

struct ModelParity {
  std::string model;  ///< the directory
  std::vector<ParityCheck> checks;
  bool passed() const;
};

struct ParityOptions {
  bool bf16 =
      false;  ///< also the forward pass in bfloat16, against the recorded error of stock code
};

/// Compares a model with the reference.json and reference.safetensors of its directory, in float32
/// on `device`: the config's two spellings, logits, hidden states, losses, every gradient, ten
/// steps of AdamW, and greedy decoding with a paged KV cache. reference.json may name another
/// directory's reference ("reference": "../base/reference.safetensors"). Quantities that the
/// reference lacks are skipped, with a note; tensors of unlike shape are kCorrupt.
Result<ModelParity> check_model(const Path& directory, Device& device,
                                const ParityOptions& options = {});

}  // namespace fastserve
