#include "compress/pruning.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/check.h"

namespace fastserve {
namespace {

size_t kept_count(size_t n, double sparsity) {
  // The nudge keeps products such as 10 * (1 - 0.9) from falling a rounding error below a whole
  // number.
  return static_cast<size_t>(std::floor(static_cast<double>(n) * (1.0 - sparsity) + 1e-9));
}

/// Marks the `keep` largest scores, the first of equals. `scratch` is overwritten.
void keep_largest(std::span<const double> scores, size_t keep, uint8_t* mask,
                  std::vector<double>& scratch) {
  std::fill_n(mask, scores.size(), uint8_t{0});
  if (keep == 0) return;
  scratch.assign(scores.begin(), scores.end());
  const auto last_kept = scratch.begin() + static_cast<std::ptrdiff_t>(keep) - 1;
  std::nth_element(scratch.begin(), last_kept, scratch.end(), std::greater<>());
  const double cut = *last_kept;
  size_t above = 0;
  for (const double score : scores) above += score > cut;
  size_t ties = keep - above;
  for (size_t i = 0; i < scores.size(); i++) {
    if (scores[i] > cut)
      mask[i] = 1;
    else if (scores[i] == cut && ties > 0)
      mask[i] = 1, ties--;
  }
}

}  // namespace

std::vector<uint8_t> pruning_mask(std::span<const float> weights, int rows, int cols,
                                  std::span<const double> channel_norms, PruningScope scope,
                                  double sparsity) {
  const size_t height = static_cast<size_t>(rows), width = static_cast<size_t>(cols);
  FS_CHECK(weights.size() == height * width);
  FS_CHECK(channel_norms.empty() || channel_norms.size() == width);
  FS_CHECK(sparsity >= 0 && sparsity <= 1);
  std::vector<double> scores(weights.size()), scratch;
  for (size_t i = 0; i < scores.size(); i++) {
    scores[i] = std::fabs(static_cast<double>(weights[i]));
    if (!channel_norms.empty()) scores[i] *= channel_norms[i % width];
  }
  std::vector<uint8_t> mask(weights.size());
  const std::span<const double> all = scores;
  if (scope == PruningScope::kTensor) {
    keep_largest(all, kept_count(all.size(), sparsity), mask.data(), scratch);
    return mask;
  }
  const size_t step = scope == PruningScope::kRow ? width : 4;
  for (size_t row = 0; row < height; row++)
    for (size_t first = 0; first < width; first += step) {
      const size_t at = row * width + first, size = std::min(step, width - first);
      const size_t keep =
          scope == PruningScope::kRow ? kept_count(size, sparsity) : std::min<size_t>(2, size);
      keep_largest(all.subspan(at, size), keep, mask.data() + at, scratch);
    }
  return mask;
}

void apply_mask(std::span<const uint8_t> mask, std::span<float> weights) {
  FS_CHECK(mask.size() == weights.size());
  for (size_t i = 0; i < mask.size(); i++)
    if (mask[i] == 0) weights[i] = 0;
}

}  // namespace fastserve
