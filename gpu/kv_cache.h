// The paged cache as it lies on the card.
#pragma once

#include <utility>
#include <vector>

#include "gpu/runtime.h"
#include "model/decode_ops.h"

namespace fastserve::gpu {

/// [layer][keys, values][kv_head][block * block_tokens + slot][head_dim]; behind them, for int8,
/// the scales in the same order.
class GpuKvCache final : public KvCache {
 public:
  GpuKvCache(const KvShape& shape, Memory memory) : KvCache(shape), memory_(std::move(memory)) {}
  size_t bytes() const override { return memory_.bytes(); }
  static size_t slots(const KvShape& s) {
    return static_cast<size_t>(s.blocks) * static_cast<size_t>(s.block_tokens);
  }
  static size_t heads(const KvShape& s) { return static_cast<size_t>(s.kv_heads) * slots(s); }
  /// Bytes of a layer's keys, or values.
  static size_t half_layer(const KvShape& s) {
    const size_t element = s.type == KvType::kInt8 ? 1 : s.type == KvType::kFloat16 ? 2 : 4;
    return heads(s) * static_cast<size_t>(s.head_dim) * element;
  }
  /// Bytes in front of the scales.
  static size_t numbers(const KvShape& s) {
    return (2 * static_cast<size_t>(s.layers) * half_layer(s) + 255) / 256 * 256;
  }
  static size_t bytes_of(const KvShape& s) {
    const size_t scales = 2 * static_cast<size_t>(s.layers) * heads(s) * sizeof(float);
    return numbers(s) + (s.type == KvType::kInt8 ? scales : 0);
  }
  void* keys(int layer) { return at_half(2 * layer); }
  void* values(int layer) { return at_half(2 * layer + 1); }
  float* key_scales(int layer) { return scales_at(2 * layer); }
  float* value_scales(int layer) { return scales_at(2 * layer + 1); }

  /// Parts of the memory that hold each block in `count` pieces, `plane` bytes from one to the
  /// next.
  struct Planes {
    void* at;
    size_t count, plane, piece;
  };
  std::vector<Planes> planes() const {
    const size_t heads = static_cast<size_t>(shape_.kv_heads),
                 count = 2 * heads * size_t(shape_.layers);
    const auto of = [&](void* at, size_t plane) {
      return Planes{at, count, plane, plane / static_cast<size_t>(shape_.blocks)};
    };
    std::vector<Planes> all = {of(memory_.data(), half_layer(shape_) / heads)};
    if (shape_.type == KvType::kInt8)
      all.push_back(of(scales_at(0), slots(shape_) * sizeof(float)));
    return all;
  }

 private:
  void* at_half(int i) const {
    return static_cast<std::byte*>(memory_.data()) + static_cast<size_t>(i) * half_layer(shape_);
  }
  float* scales_at(int i) const {
    if (shape_.type != KvType::kInt8) return nullptr;
    return reinterpret_cast<float*>(static_cast<std::byte*>(memory_.data()) + numbers(shape_)) +
           static_cast<size_t>(i) * heads(shape_);
  }
  Memory memory_;
};

}  // namespace fastserve::gpu
