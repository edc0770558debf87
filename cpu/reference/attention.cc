// Causal attention of packed sequences, with shared key-value heads and an optional window.
#include <algorithm>
#include <cmath>

#include "cpu/reference/train_functions.h"

namespace fastserve::reference {
namespace {

/// Where one query row looks: its own columns, and rows first..row of the sequence.
struct Query {
  int row, first;
  int q, k, v;  ///< first column of the query, key and value head
};

int first_seen(int row, int start, int window) {
  return window > 0 ? std::max(start, row - window + 1) : start;
}

double dot(const Compute& compute, const void* a, size_t ia, const void* b, size_t ib, int n) {
  double sum = 0;
  for (size_t d = 0; d < static_cast<size_t>(n); ++d)
    sum += compute.load(a, ia + d) * compute.load(b, ib + d);
  return sum;
}

/// Softmax of scale * q.k over the rows that the query sees; `peak` and `inverse_sum` as found.
std::vector<double> probabilities(const Compute& compute, const AttentionForward& op,
                                  const Query& at_query, double& peak, double& inverse_sum) {
  const int width = op.shape.width();
  std::vector<double> p;
  for (int j = at_query.first; j <= at_query.row; ++j)
    p.push_back(static_cast<double>(op.scale) * dot(compute, op.qkv,
                                                    at(at_query.row, width, at_query.q), op.qkv,
                                                    at(j, width, at_query.k), op.shape.head_dim));
  peak = *std::max_element(p.begin(), p.end());
  double sum = 0;
  for (double& v : p) sum += v = std::exp(v - peak);
  inverse_sum = 1.0 / sum;
  for (double& v : p) v *= inverse_sum;
  return p;
}

/// Calls body(query, head) for every row of every sequence and every query head.
template <class Body>
void for_each_query(const AttentionForward& op, const Body& body) {
  const HeadShape& s = op.shape;
  for (size_t sequence = 0; sequence + 1 < op.starts.size(); ++sequence)
    for (int h = 0; h < s.heads; ++h) {
      const int kv = h / (s.heads / s.kv_heads);
      for (int row = op.starts[sequence]; row < op.starts[sequence + 1]; ++row)
        body(Query{row, first_seen(row, op.starts[sequence], op.window), h * s.head_dim,
                   (s.heads + kv) * s.head_dim, (s.heads + s.kv_heads + kv) * s.head_dim},
             h);
    }
}

}  // namespace

/// out = softmax(scale q K^T) V per head; stats = (largest score, 1 / sum of exponentials).
void attention_forward(const Compute& compute, const AttentionForward& op) {
  const HeadShape& s = op.shape;
  const int rows = op.starts.back();
  for_each_query(op, [&](const Query& query, int h) {
    double peak = 0, inverse_sum = 0;
    const std::vector<double> p = probabilities(compute, op, query, peak, inverse_sum);
    for (int d = 0; d < s.head_dim; ++d) {
      double sum = 0;
      for (int j = query.first; j <= query.row; ++j)
        sum += p[static_cast<size_t>(j - query.first)] *
               compute.load(op.qkv, at(j, s.width(), query.v + d));
      compute.store(op.out, at(query.row, s.heads * s.head_dim, h * s.head_dim + d), sum);
    }
    if (!op.stats) return;
    op.stats[at(h * rows + query.row, 2, 0)] = static_cast<float>(peak);
    op.stats[at(h * rows + query.row, 2, 1)] = static_cast<float>(inverse_sum);
  });
}

/// With P the probabilities and dP[j] = dout . v[j]:
///   dv[j] += P[j] dout; dS[j] = P[j] (dP[j] - sum P dP); dq += scale dS[j] k[j]; dk[j] += scale
///   dS[j] q
void attention_backward(const Compute& compute, const AttentionBackward& op) {
  const AttentionForward& f = op.forward;
  const HeadShape& s = f.shape;
  const int width = s.width(), rows = f.starts.back();
  std::vector<double> dqkv(at(rows, width));
  for_each_query(f, [&](const Query& query, int h) {
    double peak = 0, inverse_sum = 0;
    const std::vector<double> p = probabilities(compute, f, query, peak, inverse_sum);
    const size_t dout = at(query.row, s.heads * s.head_dim, h * s.head_dim);
    std::vector<double> dp(p.size());
    double mean = 0;
    for (size_t i = 0; i < p.size(); ++i) {
      const int j = query.first + static_cast<int>(i);
      dp[i] = dot(compute, op.dout, dout, f.qkv, at(j, width, query.v), s.head_dim);
      mean += p[i] * dp[i];
    }
    for (size_t i = 0; i < p.size(); ++i) {
      const int j = query.first + static_cast<int>(i);
      const double ds = static_cast<double>(f.scale) * p[i] * (dp[i] - mean);
      for (int d = 0; d < s.head_dim; ++d) {
        const size_t q = at(query.row, width, query.q + d), k = at(j, width, query.k + d);
        dqkv[at(j, width, query.v + d)] +=
            p[i] * compute.load(op.dout, dout + static_cast<size_t>(d));
        dqkv[q] += ds * compute.load(f.qkv, k);
        dqkv[k] += ds * compute.load(f.qkv, q);
      }
    }
  });
  for (size_t i = 0; i < dqkv.size(); ++i) compute.store(op.dqkv, i, dqkv[i]);
}

}  // namespace fastserve::reference
