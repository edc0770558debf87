// What the clients of both services stand on. For rpc/ alone.
#pragma once

#include <kj/exception.h>

#include <condition_variable>
#include <mutex>
#include <optional>

#include "base/clock.h"
#include "base/result.h"

namespace fastserve {

/// One answer on its way from the loop's thread to the caller's.
template <class T>
class Answer {
 public:
  void set(Result<T> value) {
    const std::lock_guard lock(mutex_);
    if (!value_) value_.emplace(std::move(value));
    ready_.notify_all();
  }
  std::optional<Result<T>> wait(Nanoseconds timeout) {
    std::unique_lock lock(mutex_);
    ready_.wait_for(lock, timeout, [&] { return value_.has_value(); });
    return std::move(value_);
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::optional<Result<T>> value_;
};

/// Keeps what KJ would log off the host program's stderr, on the thread that has it.
class SilentLog final : public kj::ExceptionCallback {
 public:
  void logMessage(kj::LogSeverity, const char*, int, int, kj::String&&) override {}
};

}  // namespace fastserve
