#include "cluster/forward_time.h"

#include <algorithm>

namespace fastserve {

int64_t ForwardTime::unix_seconds() {
  constexpr int64_t kJitter = 2;  // both clocks are read to the second, and not at once
  const int64_t wall = clock_.unix_seconds();
  const Nanoseconds monotonic = clock_.now();
  const auto passed = std::chrono::duration_cast<std::chrono::seconds>(monotonic - last_monotonic_);
  const int64_t expected = last_ + std::max<int64_t>(0, passed.count());
  behind_ = expected - wall > kJitter ? expected - wall : 0;
  const int64_t now = std::max(behind_ > 0 ? expected : wall, last_);
  // The fraction of a second that was not counted stays with the monotonic clock.
  if (behind_ > 0)
    last_monotonic_ += passed;
  else
    last_monotonic_ = monotonic;
  last_ = now;
  return now;
}

}  // namespace fastserve
