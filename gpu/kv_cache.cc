// Room for keys and values, and their blocks on the way to the host and back.
#include "gpu/kv_cache.h"

#include <algorithm>

#include "gpu/decode_ops.h"
#include "gpu/kernels/move_blocks.cuh"
#include "gpu/launch.h"

namespace fastserve::gpu {
namespace {

constexpr size_t kMostMoved = 32 << 20;  ///< bytes of blocks that are packed at once

}  // namespace

Result<std::unique_ptr<KvCache>> make_kv_cache(Runtime& runtime, const KvShape& shape) {
  FS_ASSIGN(Memory memory, Memory::allocate(runtime, GpuKvCache::bytes_of(shape)));
  return std::unique_ptr<KvCache>(new GpuKvCache(shape, std::move(memory)));
}

size_t kv_block_bytes(const KvCache& cache) {
  size_t bytes = 0;
  for (const auto& p : static_cast<const GpuKvCache&>(cache).planes()) bytes += p.count * p.piece;
  return (bytes + 15) / 16 * 16;
}

void move_kv_blocks(Runtime& runtime, Workspace& workspace, KvCache& cache,
                    std::span<const int32_t> blocks, void* host, bool out) {
  const size_t block_bytes = kv_block_bytes(cache);
  const size_t most = std::max<size_t>(1, kMostMoved / block_bytes);
  for (size_t first = 0; first < blocks.size(); first += most) {
    const auto part = blocks.subspan(first, std::min(most, blocks.size() - first));
    const size_t bytes = part.size() * block_bytes;
    if (!workspace.begin(Workspace::room<int32_t>(part.size()) +
                         Workspace::room<unsigned char>(bytes)))
      return;
    const int32_t* const which = workspace.upload(part);
    auto* const packed = workspace.take<unsigned char>(bytes);
    auto* const on_host = static_cast<std::byte*>(host) + first * block_bytes;
    if (!out) runtime.copy_in_async(packed, on_host, bytes);
    size_t at = 0;  // of a block's pieces in these planes
    for (const auto& planes : static_cast<GpuKvCache&>(cache).planes()) {
      const MoveArguments arguments{static_cast<unsigned char*>(planes.at),
                                    planes.plane,
                                    planes.piece,
                                    which,
                                    packed + at,
                                    block_bytes,
                                    out};
      const Launch how{"move_blocks",
                       {static_cast<unsigned>(planes.count), static_cast<unsigned>(part.size())},
                       {kMoveThreads}};
      const size_t sizes = planes.plane | planes.piece | block_bytes | at;
      launch(runtime, how,
             sizes % 16 == 0  ? move_blocks<uint4>
             : sizes % 4 == 0 ? move_blocks<uint32_t>
                              : move_blocks<unsigned char>,
             arguments);
      at += planes.count * planes.piece;
    }
    if (out) runtime.copy_out(on_host, packed, bytes);
  }
}

}  // namespace fastserve::gpu
