// Embedding look-up and the two norms.
#include <cmath>

#include "cpu/reference/train_functions.h"

namespace fastserve::reference {

/// out[r] = token_table[tokens[r]] + position_table[positions[r]]
void embed_forward(const EmbedForward& op) {
  for (size_t r = 0; r < op.tokens.size(); ++r) {
    const int row = static_cast<int>(r);
    for (int c = 0; c < op.channels; ++c) {
      double value = op.token_table[at(op.tokens[r], op.channels, c)];
      if (op.position_table) value += op.position_table[at(op.positions[r], op.channels, c)];
      op.out[at(row, op.channels, c)] = static_cast<float>(value);
    }
  }
}

void embed_backward(const EmbedBackward& op) {
  for (size_t r = 0; r < op.tokens.size(); ++r) {
    const int row = static_cast<int>(r);
    for (int c = 0; c < op.channels; ++c) {
      const float d = op.dx[at(row, op.channels, c)];
      op.dtoken_table[at(op.tokens[r], op.channels, c)] += d;
      if (op.dposition_table) op.dposition_table[at(op.positions[r], op.channels, c)] += d;
    }
  }
}

/// out = (x - mean) * inverse * weight + bias, where
///   LayerNorm (Ba et al. 2016): mean of x, inverse = 1/sqrt(variance + epsilon)
///   RMSNorm (Zhang & Sennrich 2019): mean = 0, inverse = 1/sqrt(mean of x^2 + epsilon)
void norm_forward(const Compute& compute, const NormForward& op) {
  const int n = op.channels;
  for (int r = 0; r < op.rows; ++r) {
    const float* x = op.x + at(r, n);
    double mean = 0, square = 0;
    if (op.kind == NormKind::kLayerNorm) {
      for (int c = 0; c < n; ++c) mean += x[c];
      mean /= n;
    }
    for (int c = 0; c < n; ++c) square += (x[c] - mean) * (x[c] - mean);
    const double inverse = 1.0 / std::sqrt(square / n + static_cast<double>(op.epsilon));
    for (int c = 0; c < n; ++c) {
      const double bias = op.bias ? op.bias[c] : 0.0;
      compute.store(op.out, at(r, n, c), (x[c] - mean) * inverse * op.weight[c] + bias);
    }
    op.stats[at(r, 2, 0)] = static_cast<float>(mean);
    op.stats[at(r, 2, 1)] = static_cast<float>(inverse);
  }
}

/// With h = (x - mean) * inverse and g = dy * weight:
///   dx = inverse * (g - mean(g) [LayerNorm only] - h * mean(g h)); dweight += dy h; dbias += dy
void norm_backward(const Compute& compute, const NormBackward& op) {
  const int n = op.channels;
  std::vector<double> dweight(static_cast<size_t>(n)), dbias(dweight), dx_sums(dweight);
  for (int r = 0; r < op.rows; ++r) {
    const float *x = op.x + at(r, n), *dy = static_cast<const float*>(op.dy) + at(r, n);
    const double mean = op.stats[at(r, 2, 0)], inverse = op.stats[at(r, 2, 1)];
    double g_mean = 0, gh_mean = 0;
    for (int c = 0; c < n; ++c) {
      const double h = (x[c] - mean) * inverse, g = static_cast<double>(dy[c]) * op.weight[c];
      g_mean += g;
      gh_mean += g * h;
      dweight[static_cast<size_t>(c)] += dy[c] * h;
      dbias[static_cast<size_t>(c)] += dy[c];
    }
    g_mean = op.kind == NormKind::kLayerNorm ? g_mean / n : 0.0;
    gh_mean /= n;
    for (int c = 0; c < n; ++c) {
      const double h = (x[c] - mean) * inverse, g = static_cast<double>(dy[c]) * op.weight[c];
      float& dx = op.dx[at(r, n, c)];
      const double before = op.accumulate ? dx : 0.0;
      dx = static_cast<float>(before + inverse * (g - g_mean - h * gh_mean));
      if (op.dx_compute) compute.store(op.dx_compute, at(r, n, c), dx);
      dx_sums[static_cast<size_t>(c)] += dx;
    }
  }
  for (int c = 0; c < n; ++c) {
    op.dweight[c] = static_cast<float>(op.dweight[c] + dweight[static_cast<size_t>(c)]);
    if (op.dbias) op.dbias[c] = static_cast<float>(op.dbias[c] + dbias[static_cast<size_t>(c)]);
    if (op.dx_sums)
      op.dx_sums[c] = static_cast<float>(op.dx_sums[c] + dx_sums[static_cast<size_t>(c)]);
  }
}

}  // namespace fastserve::reference
