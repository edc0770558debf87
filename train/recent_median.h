// How long something usually takes.
#pragma once

#include <algorithm>
#include <array>

#include "base/clock.h"

namespace fastserve {

/// The middle one of the last nine times: a few stragglers among them change nothing, and a lasting
/// change is followed once it is in five.
class RecentMedian {
 public:
  void add(Nanoseconds time) { times_[added_++ % times_.size()] = time; }
  /// 0 while there are none.
  Nanoseconds median() const {
    auto times = times_;
    const size_t n = std::min(added_, times.size());
    if (n == 0) return Nanoseconds{0};
    const auto middle = times.begin() + static_cast<ptrdiff_t>((n - 1) / 2);
    std::nth_element(times.begin(), middle, times.begin() + static_cast<ptrdiff_t>(n));
    return *middle;
  }

 private:
  std::array<Nanoseconds, 9> times_{};
  size_t added_ = 0;
};

}  // namespace fastserve
