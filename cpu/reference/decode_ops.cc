#include <algorithm>
#include <cmath>

#include "cpu/reference/compute.h"
#include "cpu/reference/decode_functions.h"
#include "cpu/reference/reference_ops.h"

namespace fastserve {
namespace {

using reference::at;

float table_value(const DecodeEmbed& op, size_t i) {
  if (op.type == DType::kBF16) return to_float(static_cast<const BFloat16*>(op.token_table)[i]);
  if (op.type == DType::kF16) return to_float(static_cast<const Float16*>(op.token_table)[i]);
  return static_cast<const float*>(op.token_table)[i];
}

class ReferenceDecodeOps final : public DecodeOps {
 public:
  Result<std::unique_ptr<DecodeMatrix>> make_matrix(const DecodeMatrixSource& source) override {
    return reference::DequantisedMatrix::make(source);
  }
  Result<std::unique_ptr<KvCache>> make_cache(const KvShape& shape) override {
    return std::unique_ptr<KvCache>(std::make_unique<reference::PlainKvCache>(shape));
  }
  void embed(const DecodeEmbed& op) override {
    for (size_t r = 0; r < op.tokens.size(); ++r)
      for (int c = 0; c < op.channels; ++c) {
        float value = table_value(op, at(op.tokens[r], op.channels, c));
        if (op.position_table) value += op.position_table[at(op.positions[r], op.channels, c)];
        op.out[at(static_cast<int>(r), op.channels, c)] = value;
      }
  }
  void matmul(const DecodeMatmul& op) override { reference::decode_matmul(op); }
  void attention(const DecodeAttention& op) override { reference::decode_attention(op); }
  void cross_entropy(const float* logits, int rows, int vocab, int ld,
                     std::span<const int32_t> targets, double* losses) override {
    for (int r = 0; r < rows; ++r) {
      const float* row = logits + at(r, ld);
      const double peak = *std::max_element(row, row + vocab);
      double sum = 0;
      for (int o = 0; o < vocab; ++o) sum += std::exp(row[o] - peak);
      losses[r] = peak + std::log(sum) - row[targets[static_cast<size_t>(r)]];
    }
  }
};

}  // namespace

std::unique_ptr<DecodeOps> make_reference_decode_ops() {
  return std::make_unique<ReferenceDecodeOps>();
}

}  // namespace fastserve
