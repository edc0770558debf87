// Which places on the host hold the blocks of requests that gave way.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/decoder.h"

namespace fastserve {

/// Hands out places, and lists what has to be moved between them and the pool.
///
/// Owns:     the bookkeeping of `places` places; never the memory.
/// Threads:  one caller.
class KvParking {
 public:
  explicit KvParking(int places);

  /// A place for each block, appended to `places`; false, and nothing done, without so many.
  bool park(std::span<const int32_t> blocks, std::vector<int32_t>& places);
  /// Brings the block at places[i] back as blocks[i].
  void fetch(std::span<const int32_t> places, std::span<const int32_t> blocks);
  /// Nobody wants these any more. After fetch(), too.
  void release(std::span<const int32_t> places);

  /// To be made in order, before the next step; none are left then.
  std::vector<BlockMove> take_moves();
  int free() const { return static_cast<int>(free_.size()); }

 private:
  std::vector<int32_t> free_;  // the last is the next
  std::vector<BlockMove> moves_;
};

}  // namespace fastserve
