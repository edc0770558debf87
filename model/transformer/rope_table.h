// Cosines and sines of rotary position embedding.
#pragma once

#include <vector>

#include "model/config.h"

namespace fastserve {

/// [positions, head_dim]: head_dim/2 cosines, then as many sines, computed in double.
/// Requires config.rope.
std::vector<float> rope_table(const ModelConfig& config, int positions);

}  // namespace fastserve
