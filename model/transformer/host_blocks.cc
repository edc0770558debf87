#include "model/transformer/host_blocks.h"

#include <algorithm>

#include "base/check.h"
#include "model/device.h"

namespace fastserve {
namespace {

constexpr size_t kChunkBytes = size_t{64} << 20;

}  // namespace

HostBlocks::HostBlocks(Device& device, DecodeOps& ops, KvCache& cache,
                       const DecoderOptions& options)
    : device_(device), ops_(ops), cache_(cache), block_bytes_(ops.block_bytes(cache)) {
  if (block_bytes_ == 0) return;
  const uint64_t most = options.host_bytes / block_bytes_;
  places_ = static_cast<int>(std::min(most, static_cast<uint64_t>(options.kv_blocks)));
  chunk_places_ = static_cast<int>(std::max<size_t>(1, kChunkBytes / block_bytes_));
  chunks_.resize(static_cast<size_t>((places_ + chunk_places_ - 1) / chunk_places_));
}

Result<std::byte*> HostBlocks::memory(int32_t place) {
  FS_CHECK(place >= 0 && place < places_);
  auto& chunk = chunks_[static_cast<size_t>(place / chunk_places_)];
  if (!chunk) {
    const int first = place / chunk_places_ * chunk_places_;
    const size_t held = static_cast<size_t>(std::min(chunk_places_, places_ - first));
    FS_ASSIGN(chunk, device_.allocate_host(held * block_bytes_));
  }
  return static_cast<std::byte*>(chunk->data()) +
         static_cast<size_t>(place % chunk_places_) * block_bytes_;
}

Status HostBlocks::move(std::span<const BlockMove> moves) {
  for (size_t i = 0; i < moves.size();) {
    const BlockMove& first = moves[i];
    run_.clear();
    // Places side by side, of one chunk, are one copy.
    for (int32_t place = first.place;
         i < moves.size() && moves[i].out == first.out && moves[i].place == place &&
         place / chunk_places_ == first.place / chunk_places_;
         ++i, ++place)
      run_.push_back(moves[i].block);
    FS_ASSIGN(std::byte* const host, memory(first.place));
    if (first.out)
      ops_.save_blocks(cache_, run_, host);
    else
      ops_.restore_blocks(cache_, run_, host);
  }
  return device_.sync();  // the host's memory may be written to again
}

}  // namespace fastserve
