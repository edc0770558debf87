// The inference ops' storage and shared formulas; decode_ops.cc makes them a DecodeOps.
#pragma once

#include <vector>

#include "model/decode_ops.h"

namespace fastserve::reference {

/// Weights as the floats that the format stands for, [out, in] row-major.
class DequantisedMatrix final : public DecodeMatrix {
 public:
  static Result<std::unique_ptr<DecodeMatrix>> make(const DecodeMatrixSource& source);
  DequantisedMatrix(int out, int in, WeightFormat format);
  size_t bytes() const override;
  std::vector<float> values;
};

/// Keys and values by [layer][kv head][block * block_tokens + slot][head_dim], rounded to the type.
class PlainKvCache final : public KvCache {
 public:
  explicit PlainKvCache(const KvShape& shape);
  size_t bytes() const override;
  /// First of the head_dim floats of one position of a sequence.
  size_t index(int layer, int kv_head, std::span<const int32_t> blocks, int position) const;
  /// What the cache holds of a key or a value, [head_dim], from `index` on.
  void put(std::vector<float>& to, size_t index, const float* head) const;
  std::vector<float> keys, values;
};

/// What a quantised matrix sees of its input: s = absmax / 127 over each run of `group` values,
/// q = x / s rounded half to even, x becomes q s. The matrix formats in groups of 32 take runs of
/// 32, the others of 128; a last run may be shorter.
void quantise_activations(std::vector<double>& x, WeightFormat format);

void decode_matmul(const DecodeMatmul& op);
void decode_attention(const DecodeAttention& op);

}  // namespace fastserve::reference
