#include "rpc/cluster_pool.h"

#include <utility>

#include "base/check.h"

namespace fastserve {

CallPool::CallPool(int threads, size_t most_waiting)
    : most_waiting_(most_waiting), most_long_(static_cast<size_t>(threads) - 1) {
  FS_CHECK(threads >= 2);
  for (int i = 0; i < threads; i++) threads_.emplace_back([this] { work(); });
}

CallPool::~CallPool() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  news_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool CallPool::post(Kind kind, std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    auto& queue = kind == Kind::kShort ? short_ : long_;
    if (ending_ || queue.size() >= most_waiting_) return false;
    queue.push_back(std::move(task));
  }
  news_.notify_one();
  return true;
}

bool CallPool::has_work() const {
  return !short_.empty() || (!long_.empty() && long_running_ < most_long_);
}

void CallPool::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    news_.wait(lock, [this] { return ending_ || has_work(); });
    if (ending_) return;
    const bool is_long = short_.empty();
    auto& queue = is_long ? long_ : short_;
    const std::function<void()> task = std::move(queue.front());
    queue.pop_front();
    long_running_ += is_long;
    lock.unlock();
    task();
    lock.lock();
    long_running_ -= is_long;
    if (is_long) news_.notify_one();  // another long one may have waited for this
  }
}

}  // namespace fastserve
