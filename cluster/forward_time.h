// The time of day by which tokens expire: it never goes back.
#pragma once

#include <string>

#include "base/clock.h"

namespace fastserve {

/// Follows the wall clock, but for steps back: then it goes on at the pace of the monotonic clock,
/// so that what has expired stays expired. (A step forward is followed at once: to refuse what may
/// still be valid costs a new token; to accept what is not costs the cluster.)
///
/// Threads: one caller at a time.
class ForwardTime {
 public:
  explicit ForwardTime(const Clock& clock)
      : clock_(clock), last_(clock.unix_seconds()), last_monotonic_(clock.now()) {}

  int64_t unix_seconds();
  /// By how many seconds the wall clock is behind, as of the last call.
  int64_t behind() const { return behind_; }

 private:
  const Clock& clock_;
  int64_t last_;
  Nanoseconds last_monotonic_;
  int64_t behind_ = 0;
};

}  // namespace fastserve
