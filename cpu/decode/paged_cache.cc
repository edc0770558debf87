#include "cpu/decode/paged_cache.h"

#include <algorithm>
#include <limits>
#include <string>

namespace fastserve {
namespace {

KvElement element_of(KvType type) {
  return type == KvType::kInt8      ? KvElement::kInt8
         : type == KvType::kFloat16 ? KvElement::kFloat16
                                    : KvElement::kFloat32;
}

}  // namespace

PagedCache::PagedCache(const KvShape& shape) : KvCache(shape) {
  layout_.head_dim = shape.head_dim;
  layout_.wide = (shape.head_dim + 15) / 16 * 16;
  layout_.block_tokens = shape.block_tokens;
  layout_.block_tiles = (shape.block_tokens + 15) / 16;
  layout_.element = element_of(shape.type);
  layout_.header = shape.type == KvType::kInt8 ? 16 * static_cast<int>(sizeof(float)) : 0;
  const size_t tiles = static_cast<size_t>(layout_.block_tiles);
  key_block_ = tiles * static_cast<size_t>(layout_.key_tile());
  value_block_ = tiles * static_cast<size_t>(layout_.value_tile());
}

Result<std::unique_ptr<PagedCache>> PagedCache::make(const KvShape& shape, LanePool& lanes) {
  constexpr int kMostTokens = 1 << 20, kMostHeadDim = 1 << 14;
  if (shape.layers < 1 || shape.kv_heads < 1 || shape.head_dim < 1 ||
      shape.head_dim > kMostHeadDim || shape.block_tokens < 1 || shape.block_tokens > kMostTokens ||
      shape.blocks < 1)
    return Error{ErrorCode::kInvalidArgument,
                 "a KV cache of " + std::to_string(shape.layers) + " layers, " +
                     std::to_string(shape.kv_heads) + " heads of " +
                     std::to_string(shape.head_dim) + ", " + std::to_string(shape.blocks) +
                     " blocks of " + std::to_string(shape.block_tokens) + " tokens cannot be",
                 "the KV cache", "every size must be at least 1"};
  std::unique_ptr<PagedCache> cache(new PagedCache(shape));
  size_t blocks = 0, values = 0;
  const bool overflow =
      __builtin_mul_overflow(static_cast<size_t>(shape.layers) *
                                 static_cast<size_t>(shape.kv_heads) * cache->element_bytes(),
                             static_cast<size_t>(shape.blocks), &blocks) ||
      __builtin_mul_overflow(blocks, cache->value_block_, &values);
  if (overflow) values = std::numeric_limits<size_t>::max() / 4;
  cache->values_at_ = overflow ? values : (blocks * cache->key_block_ + 63) / 64 * 64;
  FS_ASSIGN(cache->memory_, HostMemory::allocate(cache->values_at_ + values, "the KV cache"));
  constexpr size_t kPage = 4096, kPart = size_t{2} << 20;
  std::byte* data = cache->memory_.data();
  const size_t size = cache->memory_.size();
  lanes.run(static_cast<int64_t>((size + kPart - 1) / kPart), [&](int64_t part, int) {
    const size_t from = static_cast<size_t>(part) * kPart, to = std::min(size, from + kPart);
    for (size_t i = from; i < to; i += kPage) data[i] = std::byte{0};
  });
  return cache;
}

}  // namespace fastserve
