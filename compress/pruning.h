// Which weights of a matrix are set to zero.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace fastserve {

/// Where weights compete to stay.
///   kTensor  over the whole matrix
///   kRow     within each output row
///   k2of4    within every four neighbours along the input; a last group of fewer keeps two at most
enum class PruningScope : uint8_t { kTensor, kRow, k2of4 };

/// 1 = kept, for each weight of [rows, cols]. The score of a weight is |w|, times the l2 norm of
/// its input channel when `channel_norms` ([cols]) is given: Wanda (Sun et al. 2023, eq. 1). Of n
/// competing weights floor(n * (1 - sparsity)) with the largest scores stay, the first of equals;
/// k2of4 takes no sparsity. Scores are doubles. Weights must be finite.
std::vector<uint8_t> pruning_mask(std::span<const float> weights, int rows, int cols,
                                  std::span<const double> channel_norms, PruningScope scope,
                                  double sparsity = 0.5);

void apply_mask(std::span<const uint8_t> mask, std::span<float> weights);

}  // namespace fastserve
