#include "model/transformer/rope_table.h"

#include <cmath>

namespace fastserve {

std::vector<float> rope_table(const ModelConfig& config, int positions) {
  const std::vector<double> frequencies = config.rope->inverse_frequencies(config.head_dim);
  const size_t half = frequencies.size();
  std::vector<float> table(static_cast<size_t>(positions) * 2 * half);
  for (int p = 0; p < positions; ++p) {
    float* row = table.data() + static_cast<size_t>(p) * 2 * half;
    for (size_t i = 0; i < half; ++i) {
      row[i] = static_cast<float>(std::cos(p * frequencies[i]));
      row[half + i] = static_cast<float>(std::sin(p * frequencies[i]));
    }
  }
  return table;
}

}  // namespace fastserve
