// What training takes of a device's own memory.
#pragma once

#include <optional>
#include <string>

#include "model/trainable.h"

namespace fastserve {

/// What a backend keeps on its device, and what it finds there.
struct DeviceNeed {
  uint64_t weights = 0, optimiser = 0, gradients = 0, activations = 0, scratch = 0;
  uint64_t total() const { return weights + optimiser + gradients + activations + scratch; }
};

/// How often what is there.
struct DeviceShare {
  int gradients = 1;       ///< buffers
  bool optimiser = false;  ///< AdamW's moments lie there, too
  int cards = 1;           ///< that share those
  int scratch = 0;         ///< pieces of what others computed, each of ParameterShard::kPiece
};

DeviceNeed device_need(const ModelConfig& config, const ParameterLayout& layout,
                       Precision precision, int rows, const DeviceShare& share,
                       Recompute recompute);

/// Whether layers have to be recomputed for it to fit; `wanted` is not argued with. Else
/// kResourceExhausted with every figure and how many tokens of a microbatch would fit.
Result<Recompute> choose_recompute(const Device& device, const ModelConfig& config,
                                   const ParameterLayout& layout, Precision precision, int rows,
                                   const DeviceShare& share, std::optional<Recompute> wanted);

}  // namespace fastserve
