// KV blocks on the host, while their requests have given way to others.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "model/decoder.h"

namespace fastserve {

/// Owns:    memory of the host, pinned where the device can, taken as places are first used.
/// Threads: one caller. Device, operations and cache must outlive it.
class HostBlocks {
 public:
  /// As many places as the options allow, and no more than the pool has blocks.
  HostBlocks(Device& device, DecodeOps& ops, KvCache& cache, const DecoderOptions& options);

  int places() const { return places_; }
  /// In order. kResourceExhausted when the host has no room.
  Status move(std::span<const BlockMove> moves);

 private:
  /// Memory of `place`; those of one chunk lie side by side.
  Result<std::byte*> memory(int32_t place);

  Device& device_;
  DecodeOps& ops_;
  KvCache& cache_;
  const size_t block_bytes_;
  int places_ = 0, chunk_places_ = 1;
  std::vector<std::unique_ptr<DeviceBuffer>> chunks_;
  std::vector<int32_t> run_;
};

}  // namespace fastserve
