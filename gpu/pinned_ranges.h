// Which of the host's memory a runtime has pinned.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>

namespace fastserve::gpu {

/// Shared by a runtime and the memory that it gave, which may outlive it.
///
/// Threads: any.
class PinnedRanges {
 public:
  void add(const void* data, size_t bytes) {
    const std::lock_guard lock(mutex_);
    ranges_.emplace(static_cast<const std::byte*>(data), bytes);
  }
  /// Before the memory is given back, since others may be given it then.
  void remove(const void* data) {
    const std::lock_guard lock(mutex_);
    ranges_.erase(static_cast<const std::byte*>(data));
  }
  /// All of these bytes lie in one range.
  bool hold(const void* data, size_t bytes) const {
    const auto* const from = static_cast<const std::byte*>(data);
    const std::lock_guard lock(mutex_);
    const auto after = ranges_.upper_bound(from);
    if (after == ranges_.begin()) return false;
    const auto& [start, size] = *std::prev(after);
    const size_t before = static_cast<size_t>(from - start);
    return before <= size && bytes <= size - before;
  }

 private:
  mutable std::mutex mutex_;
  std::map<const std::byte*, size_t> ranges_;  // guarded by mutex_
};

}  // namespace fastserve::gpu
