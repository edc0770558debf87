// A flag that one thread raises and long work looks at.
#pragma once

#include <atomic>

namespace fastserve {

/// Threads: any. Work that sees it raised stops at its next safe point with ErrorCode::kCancelled.
class CancelFlag {
 public:
  CancelFlag() = default;
  /// Counts as raised when a host's own `also` is set, too; null: there is none.
  explicit CancelFlag(const std::atomic<bool>* also) : also_(also) {}

  void raise() { raised_.store(true, std::memory_order_relaxed); }
  bool raised() const {
    return raised_.load(std::memory_order_relaxed) || (also_ != nullptr && also_->load());
  }

 private:
  std::atomic<bool> raised_{false};
  const std::atomic<bool>* also_ = nullptr;
};

}  // namespace fastserve
