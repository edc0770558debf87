// Time comes in from outside, so that what uses it can be tested without waiting.
#pragma once

#include <chrono>

namespace fastserve {

using Nanoseconds = std::chrono::nanoseconds;

/// Threads: both calls may come from any thread.
class Clock {
 public:
  virtual ~Clock() = default;
  /// Monotonic time since some fixed point.
  virtual Nanoseconds now() const = 0;
  /// Seconds since the Unix epoch, for records that people read.
  virtual int64_t unix_seconds() const = 0;
};

class SystemClock final : public Clock {
 public:
  Nanoseconds now() const override;
  int64_t unix_seconds() const override;
};

/// A clock that moves only when told.
class ManualClock final : public Clock {
 public:
  Nanoseconds now() const override { return now_; }
  int64_t unix_seconds() const override { return start_ + now_.count() / 1'000'000'000; }
  void advance(Nanoseconds by) { now_ += by; }

 private:
  Nanoseconds now_{0};
  int64_t start_ = 1'700'000'000;
};

}  // namespace fastserve
