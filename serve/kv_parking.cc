#include "serve/kv_parking.h"

#include <utility>

#include "base/check.h"

namespace fastserve {

KvParking::KvParking(int places) : free_(static_cast<size_t>(places)) {
  for (int32_t i = 0; i < places; ++i) free_[static_cast<size_t>(i)] = places - 1 - i;
}

bool KvParking::park(std::span<const int32_t> blocks, std::vector<int32_t>& places) {
  if (blocks.empty() || blocks.size() > free_.size()) return false;
  for (const int32_t block : blocks) {
    places.push_back(free_.back());
    free_.pop_back();
    moves_.push_back({true, block, places.back()});
  }
  return true;
}

void KvParking::fetch(std::span<const int32_t> places, std::span<const int32_t> blocks) {
  FS_CHECK(places.size() == blocks.size());
  for (size_t i = 0; i < places.size(); ++i) moves_.push_back({false, blocks[i], places[i]});
}

void KvParking::release(std::span<const int32_t> places) {
  // The last first, so that the next to park finds them side by side and in order.
  for (auto it = places.rbegin(); it != places.rend(); ++it) free_.push_back(*it);
}

std::vector<BlockMove> KvParking::take_moves() { return std::exchange(moves_, {}); }

}  // namespace fastserve
