// A flag that one thread raises and long work looks at.
#pragma once

#include <atomic>

namespace fastserve {

/// Threads: any. Work that sees it raised stops at its next safe point with ErrorCode::kCancelled.
class CancelFlag {
 public:
  void raise() { raised_.store(true, std::memory_order_relaxed); }
  bool raised() const { return raised_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> raised_{false};
};

}  // namespace fastserve
