// Keeps those who read the weights and those who change them apart.
#pragma once

#include <condition_variable>
#include <mutex>

#include "base/ids.h"

namespace fastserve {

/// Readers are passes over the weights of one step. Writers take the weights to the next step,
/// range by range, several at once. Once a writer has come for a later step, readers of an earlier
/// one are sent away: what they would compute is no longer asked for.
///
/// Threads: any.
class WeightsGate {
 public:
  /// Waits for writers; false when the weights have gone past `step`. After true, leave_read().
  bool enter_read(StepId step) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return writers_ == 0 || wanted_ > step; });
    if (wanted_ > step) return false;
    readers_++;
    return true;
  }
  void leave_read() {
    std::lock_guard lock(mutex_);
    if (--readers_ == 0) changed_.notify_all();
  }
  /// Waits for readers. `next`: the step whose weights are being written.
  void enter_write(StepId next) {
    std::unique_lock lock(mutex_);
    if (next > wanted_) {
      wanted_ = next;
      changed_.notify_all();
    }
    writers_++;
    changed_.wait(lock, [&] { return readers_ == 0; });
  }
  void leave_write() {
    std::lock_guard lock(mutex_);
    if (--writers_ == 0) changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  StepId wanted_;
  int readers_ = 0, writers_ = 0;
};

}  // namespace fastserve
