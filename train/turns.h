// Who goes first when there is more to do than hands to do it.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>

namespace fastserve {

/// Lets so many work at once, of those who wait the one with the lowest number first.
///
/// Threads: any.
class Turns {
 public:
  explicit Turns(int at_once) : free_(at_once) {}

  size_t waiting() const {
    std::lock_guard lock(mutex_);
    return waiting_.size();
  }

  /// Runs `work` in its turn.
  void take(size_t number, const std::function<void()>& work) {
    std::unique_lock lock(mutex_);
    const auto me = waiting_.insert(number);
    changed_.wait(lock, [&] { return free_ > 0 && me == waiting_.begin(); });
    waiting_.erase(me);
    free_--;
    if (free_ > 0) changed_.notify_all();
    lock.unlock();
    work();
    lock.lock();
    free_++;
    changed_.notify_all();
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::multiset<size_t> waiting_;
  int free_;
};

}  // namespace fastserve
