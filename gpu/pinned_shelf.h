// Pinned memory that is kept for the next load.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "gpu/runtime.h"

namespace fastserve::gpu {

/// Pinning memory takes about as long as sending twenty times as many bytes through it, and a
/// process that serves loads models often.
///
/// Owns:    what was given back, of at most so many bytes; the rest is freed.
/// Threads: any.
class PinnedShelf {
 public:
  explicit PinnedShelf(size_t most) : most_(most) {}

  /// The smallest that has `bytes`, not cleared; null when there is none.
  std::unique_ptr<DeviceBuffer> take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    auto best = kept_.end();
    for (auto it = kept_.begin(); it != kept_.end(); ++it)
      if ((*it)->bytes() >= bytes && (best == kept_.end() || (*it)->bytes() < (*best)->bytes()))
        best = it;
    if (best == kept_.end()) return nullptr;
    std::unique_ptr<DeviceBuffer> taken = std::move(*best);
    kept_.erase(best);
    return taken;
  }

  /// Nothing reads or writes it any more. What stands in for pinned memory is not kept: the next
  /// load may be given some that is pinned.
  void put(std::unique_ptr<DeviceBuffer> memory) {
    if (!memory || dynamic_cast<HostBlock*>(memory.get()) != nullptr) return;
    const std::lock_guard lock(mutex_);
    size_t bytes = memory->bytes();
    for (const auto& kept : kept_) bytes += kept->bytes();
    if (bytes <= most_) kept_.push_back(std::move(memory));
  }

 private:
  const size_t most_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<DeviceBuffer>> kept_;  // guarded by mutex_
};

}  // namespace fastserve::gpu
