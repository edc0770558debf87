// The pool of KV blocks in the layout of the attention kernel.
#pragma once

#include <memory>

#include "cpu/decode/decode_kernels.h"
#include "cpu/host_memory.h"
#include "cpu/lane_pool.h"
#include "model/decode_ops.h"

namespace fastserve {

/// Keys and values in two pools [layer][kv head][block], each block as KvLayout says. Blocks with
/// neighbouring ids are neighbours in memory, so a sequence that was given a run of ids is read as
/// two streams a head. All pages are taken from the system at once, not when a request meets them.
class PagedCache final : public KvCache {
 public:
  /// kInvalidArgument for a shape without tokens; kResourceExhausted with the size.
  static Result<std::unique_ptr<PagedCache>> make(const KvShape& shape, LanePool& lanes);
  size_t bytes() const override { return memory_.size(); }

  const KvLayout& layout() const { return layout_; }
  size_t key_block() const { return key_block_; }      ///< elements
  size_t value_block() const { return value_block_; }  ///< elements
  /// Block 0 of one layer and head.
  std::byte* keys(int layer, int head) { return memory_.data() + offset(layer, head) * key_block_; }
  std::byte* values(int layer, int head) {
    return memory_.data() + values_at_ + offset(layer, head) * value_block_;
  }
  size_t element_bytes() const {
    return layout_.element == KvElement::kInt8 ? 1 : layout_.element == KvElement::kFloat16 ? 2 : 4;
  }

 private:
  explicit PagedCache(const KvShape& shape);
  /// Bytes for each element of a block.
  size_t offset(int layer, int head) const {
    const size_t stripe = static_cast<size_t>(layer) * static_cast<size_t>(shape_.kv_heads) +
                          static_cast<size_t>(head);
    return stripe * static_cast<size_t>(shape_.blocks) * element_bytes();
  }
  KvLayout layout_;
  size_t key_block_, value_block_;
  size_t values_at_ = 0;  // bytes of the pool of keys in front of the pool of values
  HostMemory memory_;
};

}  // namespace fastserve
