// RMSNorm of query and key heads, then rotary position embedding.
#include <cmath>

#include "cpu/reference/train_functions.h"

namespace fastserve::reference {
namespace {

/// Rotate-half RoPE (Su et al. 2021): with c, s the cosine and sine of a pair's angle,
/// (a, b) = (h[i], h[i + half]) becomes (a c - b s, b c + a s). direction = -1 undoes it.
void rotate(std::vector<double>& head, const float* cosines, double direction) {
  const size_t half = head.size() / 2;
  for (size_t i = 0; i < half; ++i) {
    const double c = cosines[i], s = direction * cosines[half + i];
    const double a = head[i], b = head[i + half];
    head[i] = a * c - b * s;
    head[i + half] = b * c + a * s;
  }
}

std::vector<double> load_head(const Compute& compute, const void* rows, size_t from, int n) {
  std::vector<double> head(static_cast<size_t>(n));
  for (size_t d = 0; d < head.size(); ++d) head[d] = compute.load(rows, from + d);
  return head;
}

void store_head(const Compute& compute, void* rows, size_t from, const std::vector<double>& head) {
  for (size_t d = 0; d < head.size(); ++d) compute.store(rows, from + d, head[d]);
}

}  // namespace

void rotary_forward(const Compute& compute, const RotaryForward& op) {
  const HeadShape& s = op.shape;
  const int normed = s.heads + s.kv_heads, all = normed + s.kv_heads;
  for (int r = 0; r < op.rows; ++r)
    for (int h = 0; h < all; ++h) {
      const size_t from = at(r, s.width(), h * s.head_dim);
      std::vector<double> head = load_head(compute, op.in, from, s.head_dim);
      if (h < normed) {
        const float* weight = h < s.heads ? op.q_norm : op.k_norm;
        if (weight) {
          double square = 0;
          for (double v : head) square += v * v;
          const double inverse =
              1.0 / std::sqrt(square / s.head_dim + static_cast<double>(op.epsilon));
          for (size_t d = 0; d < head.size(); ++d) head[d] *= inverse * weight[d];
          op.stats[at(r, normed, h)] = static_cast<float>(inverse);
        }
        if (op.table)
          rotate(head, op.table + at(op.positions[static_cast<size_t>(r)], s.head_dim), 1);
      }
      store_head(compute, op.out, from, head);
    }
}

/// Rotation is orthogonal, so its gradient rotates back; the norm's is norm_backward's without a
/// mean.
void rotary_backward(const Compute& compute, const RotaryBackward& op) {
  const RotaryForward& f = op.forward;
  const HeadShape& s = f.shape;
  const int normed = s.heads + s.kv_heads;
  const size_t dim = static_cast<size_t>(s.head_dim);
  std::vector<double> dq(dim), dk(dim);
  for (int r = 0; r < f.rows; ++r)
    for (int h = 0; h < normed; ++h) {
      const size_t from = at(r, s.width(), h * s.head_dim);
      std::vector<double> dy = load_head(compute, op.dqkv, from, s.head_dim);
      if (f.table) rotate(dy, f.table + at(f.positions[static_cast<size_t>(r)], s.head_dim), -1);
      const float* weight = h < s.heads ? f.q_norm : f.k_norm;
      if (weight) {
        std::vector<double>& dweight = h < s.heads ? dq : dk;
        const std::vector<double> x = load_head(compute, f.in, from, s.head_dim);
        const double inverse = f.stats[at(r, normed, h)];
        double gh_mean = 0;
        for (size_t d = 0; d < dim; ++d) {
          gh_mean += dy[d] * weight[d] * x[d] * inverse;
          dweight[d] += dy[d] * x[d] * inverse;
        }
        gh_mean /= s.head_dim;
        for (size_t d = 0; d < dim; ++d)
          dy[d] = inverse * (dy[d] * weight[d] - x[d] * inverse * gh_mean);
      }
      store_head(compute, op.dqkv, from, dy);
    }
  for (size_t d = 0; d < dim; ++d) {
    if (op.dq_norm) op.dq_norm[d] = static_cast<float>(op.dq_norm[d] + dq[d]);
    if (op.dk_norm) op.dk_norm[d] = static_cast<float>(op.dk_norm[d] + dk[d]);
  }
}

}  // namespace fastserve::reference
