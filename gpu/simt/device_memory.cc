#include "gpu/simt/device_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "gpu/simt/sanitizers.h"

namespace fastserve::simt {
namespace {

constexpr size_t kPage = 4096, kAlignment = 256, kGuard = 256;
constexpr int kGuardByte = 0xa5;
/// Pages of larger blocks go back to the system.
constexpr size_t kGivenBack = size_t{1} << 20;

size_t up_to(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

DeviceMemory::DeviceMemory(size_t bytes) : size_(up_to(bytes, kPage)) {
  void* const map =
      mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map != MAP_FAILED) base_ = static_cast<unsigned char*>(map);
}

DeviceMemory::~DeviceMemory() {
  if (base_ == nullptr) return;
  mark_reachable(base_, up_to(end_, kPage));  // whoever maps these addresses next
  munmap(base_, size_);
}

void DeviceMemory::set_protection(size_t from, size_t to, bool reachable) {
  from = from / kPage * kPage;
  to = up_to(to, kPage);
  if (from >= to) return;
  FS_CHECK(mprotect(base_ + from, to - from, reachable ? PROT_READ | PROT_WRITE : PROT_NONE) == 0);
}

void DeviceMemory::open() {
  const std::lock_guard lock(mutex_);
  if (accesses_++ == 0) set_protection(0, end_, true);
}

void DeviceMemory::close() {
  const std::lock_guard lock(mutex_);
  if (--accesses_ == 0) set_protection(0, end_, false);
}

DeviceMemory::Blocks::iterator DeviceMemory::find_room(size_t room) {
  auto best = blocks_.end();
  for (auto at = blocks_.begin(); at != blocks_.end(); ++at)
    if (at->second.bytes == 0 && at->second.room >= room &&
        (best == blocks_.end() || at->second.room < best->second.room))
      best = at;
  if (best != blocks_.end()) return best;
  if (base_ == nullptr || room > size_ - end_) return best;
  const size_t from = end_;
  end_ += room;
  set_protection(up_to(from, kPage), end_, accesses_ > 0);
  mark_unreachable(base_ + from, room);
  return blocks_.emplace(from, Block{0, room, 0}).first;
}

void* DeviceMemory::allocate(size_t bytes) {
  if (bytes > size_) return nullptr;
  const size_t room = up_to(bytes + kGuard, kAlignment);
  const Access access(*this);  // before the lock, which it takes, too
  const std::lock_guard lock(mutex_);
  const auto found = find_room(room);
  if (found == blocks_.end()) return nullptr;
  const size_t rest = found->second.room - room;
  if (rest > 0) blocks_.emplace(found->first + room, Block{0, rest, 0});
  found->second = {bytes, room, ++allocations_};
  held_ += room;
  unsigned char* const data = base_ + found->first;
  mark_reachable(data, room);
  std::memset(data, 0, bytes);
  std::memset(data + bytes, kGuardByte, room - bytes);
  mark_unreachable(data + bytes, room - bytes);
  return data;
}

DeviceMemory::Freed DeviceMemory::free(void* data) {
  const Access access(*this);
  const std::lock_guard lock(mutex_);
  auto at = blocks_.find(static_cast<size_t>(static_cast<unsigned char*>(data) - base_));
  FS_CHECK(at != blocks_.end() && at->second.bytes > 0);
  const size_t bytes = at->second.bytes, room = at->second.room;
  unsigned char* const start = base_ + at->first;
  mark_reachable(start, room);
  const bool intact = std::all_of(start + bytes, start + room,
                                  [](unsigned char byte) { return byte == kGuardByte; });
  if (room >= kGivenBack) {
    const size_t from = up_to(at->first, kPage), to = (at->first + room) / kPage * kPage;
    madvise(base_ + from, to - from, MADV_DONTNEED);
  }
  mark_unreachable(start, room);
  held_ -= room;
  at->second.bytes = 0;
  if (const auto next = std::next(at); next != blocks_.end() && next->second.bytes == 0) {
    at->second.room += next->second.room;
    blocks_.erase(next);
  }
  if (at != blocks_.begin())
    if (const auto before = std::prev(at); before->second.bytes == 0) {
      before->second.room += at->second.room;
      blocks_.erase(at);
    }
  return {bytes, intact};
}

uint64_t DeviceMemory::allocation_of(const void* data) const {
  if (!holds(data)) return 0;
  const std::lock_guard lock(mutex_);
  const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(data) - base_);
  const auto after = blocks_.upper_bound(offset);
  if (after == blocks_.begin()) return 0;
  const auto& [start, block] = *std::prev(after);
  return block.bytes > 0 && offset < start + block.room ? block.allocation : 0;
}

size_t DeviceMemory::available() const {
  const std::lock_guard lock(mutex_);
  return base_ == nullptr ? 0 : size_ - held_;
}

}  // namespace fastserve::simt
