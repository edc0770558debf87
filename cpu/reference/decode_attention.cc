// Attention over the paged KV cache.
#include <algorithm>
#include <cmath>

#include "cpu/reference/compute.h"
#include "cpu/reference/decode_functions.h"

namespace fastserve::reference {
namespace {

/// RMSNorm of one head (when `norm` is set), then rotate-half RoPE (when `table` is set).
void prepare_head(const DecodeAttention& op, float* head, const float* norm, int position) {
  const int n = op.shape.head_dim, half = n / 2;
  std::vector<double> h(head, head + n);
  if (norm) {
    double square = 0;
    for (double v : h) square += v * v;
    const double inverse = 1.0 / std::sqrt(square / n + static_cast<double>(op.epsilon));
    for (int d = 0; d < n; ++d) h[static_cast<size_t>(d)] *= inverse * norm[d];
  }
  for (int i = 0; i < half && op.rope_table; ++i) {
    const float* table = op.rope_table + at(position, n);
    const double c = table[i], s = table[half + i];
    double &a = h[static_cast<size_t>(i)], &b = h[static_cast<size_t>(i + half)];
    const double turned = a * c - b * s;
    b = b * c + a * s;
    a = turned;
  }
  std::copy(h.begin(), h.end(), head);
}

void append(const DecodeAttention& op, PlainKvCache& cache, const Segment& segment) {
  const HeadShape& s = op.shape;
  for (int t = 0; t < segment.rows; ++t) {
    float* row = op.qkv + at(segment.first_row + t, s.width());
    const int position = segment.position + t;
    for (int h = 0; h < s.heads + s.kv_heads; ++h)
      prepare_head(op, row + at(h, s.head_dim), h < s.heads ? op.q_norm : op.k_norm, position);
    for (int h = 0; h < s.kv_heads; ++h) {
      const size_t to = cache.index(op.layer, h, segment.blocks, position);
      cache.put(cache.keys, to, row + at(s.heads + h, s.head_dim));
      cache.put(cache.values, to, row + at(s.heads + s.kv_heads + h, s.head_dim));
    }
  }
}

/// out = softmax(scale q K^T) V for one query head of one row.
void attend(const DecodeAttention& op, const PlainKvCache& cache, const Segment& segment, int token,
            int h) {
  const HeadShape& s = op.shape;
  const int position = segment.position + token, kv = h / (s.heads / s.kv_heads);
  const int first = op.window > 0 ? std::max(0, position - op.window + 1) : 0;
  const float* q = op.qkv + at(segment.first_row + token, s.width(), h * s.head_dim);
  std::vector<double> p;
  for (int j = first; j <= position; ++j) {
    const float* k = cache.keys.data() + cache.index(op.layer, kv, segment.blocks, j);
    double sum = 0;
    for (int d = 0; d < s.head_dim; ++d) sum += static_cast<double>(q[d]) * k[d];
    p.push_back(sum * static_cast<double>(op.scale));
  }
  const double peak = *std::max_element(p.begin(), p.end());
  double total = 0;
  for (double& v : p) total += v = std::exp(v - peak);
  float* out = op.out + at(segment.first_row + token, s.heads * s.head_dim, h * s.head_dim);
  for (int d = 0; d < s.head_dim; ++d) {
    double sum = 0;
    for (int j = first; j <= position; ++j)
      sum += p[static_cast<size_t>(j - first)] *
             cache.values[cache.index(op.layer, kv, segment.blocks, j) + static_cast<size_t>(d)];
    out[d] = static_cast<float>(sum / total);
  }
}

}  // namespace

PlainKvCache::PlainKvCache(const KvShape& shape) : KvCache(shape) {
  const size_t tokens = at(shape.blocks, shape.block_tokens);
  const size_t n = at(shape.layers, shape.kv_heads) * tokens * static_cast<size_t>(shape.head_dim);
  keys.resize(n);
  values.resize(n);
}

size_t PlainKvCache::bytes() const { return 2 * keys.size() * sizeof(float); }

size_t PlainKvCache::index(int layer, int kv_head, std::span<const int32_t> blocks,
                           int position) const {
  const int block = blocks[static_cast<size_t>(position / shape_.block_tokens)];
  FS_CHECK(block >= 0 && block < shape_.blocks);
  const size_t slot = at(block, shape_.block_tokens, position % shape_.block_tokens);
  const size_t head = at(layer, shape_.kv_heads, kv_head);
  return (head * at(shape_.blocks, shape_.block_tokens) + slot) *
         static_cast<size_t>(shape_.head_dim);
}

void PlainKvCache::put(std::vector<float>& to, size_t index, const float* head) const {
  const std::span<const float> in(head, static_cast<size_t>(shape_.head_dim));
  const auto out = to.begin() + static_cast<std::ptrdiff_t>(index);
  if (shape_.type == KvType::kFloat32) {
    std::copy(in.begin(), in.end(), out);
  } else if (shape_.type == KvType::kFloat16) {
    std::transform(in.begin(), in.end(), out, [](float v) { return to_float(to_float16(v)); });
  } else {
    float peak = 0;
    for (const float v : in) peak = std::isnan(v) ? v : std::max(peak, std::abs(v));
    // In float, as every device does it: the codes of a value are then the same everywhere.
    const float scale = peak / 127.0f, inverse = peak > 1e-30f ? 127.0f / peak : 0.0f;
    std::transform(in.begin(), in.end(), out,
                   [&](float v) { return std::nearbyint(v * inverse) * scale; });
  }
}

void decode_attention(const DecodeAttention& op) {
  auto& cache = static_cast<PlainKvCache&>(*op.cache);
  for (const Segment& segment : op.segments) append(op, cache, segment);
  for (const Segment& segment : op.segments)
    for (int t = 0; t < segment.rows; ++t)
      for (int h = 0; h < op.shape.heads; ++h) attend(op, cache, segment, t, h);
}

}  // namespace fastserve::reference
