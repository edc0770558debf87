// Threads for calls that may take a while, so that an event loop never does.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace fastserve {

/// Runs tasks in the order they came, a few at a time.
///
/// Owns:     its threads. Destruction drops what waits and joins what runs.
/// Threads:  post() from any.
/// Promises: long tasks never hold all threads: a short one waits for short ones alone.
/// Refuses:  post() is false when too many wait.
class CallPool {
 public:
  enum class Kind : uint8_t { kShort, kLong };

  CallPool(int threads, size_t most_waiting);
  ~CallPool();
  CallPool(const CallPool&) = delete;
  CallPool& operator=(const CallPool&) = delete;

  [[nodiscard]] bool post(Kind kind, std::function<void()> task);

 private:
  void work();
  bool has_work() const;

  const size_t most_waiting_, most_long_;
  std::mutex mutex_;
  std::condition_variable news_;
  std::deque<std::function<void()>> short_, long_;
  size_t long_running_ = 0;
  bool ending_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace fastserve
