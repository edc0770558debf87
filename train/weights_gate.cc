#include "train/weights_gate.h"

#include <algorithm>

#include "base/check.h"

namespace fastserve {

bool WeightsGate::enter_read(StepId step) {
  std::unique_lock lock(mutex_);
  const auto free = [](const Range& range) { return range.writers == 0; };
  changed_.wait(lock, [&] { return gone(step) || std::ranges::all_of(ranges_, free); });
  if (gone(step)) return false;
  for (Range& range : ranges_) range.readers++;
  return true;
}

WeightsGate::Entry WeightsGate::entry(StepId step, const Range& range) const {
  if (gone(step)) return Entry::kNever;
  return range.writers == 0 && range.at == step ? Entry::kIn : Entry::kNotYet;
}

bool WeightsGate::enter_read(StepId step, size_t r) {
  std::unique_lock lock(mutex_);
  Range& range = ranges_[r];
  changed_.wait(lock, [&] { return entry(step, range) != Entry::kNotYet; });
  if (entry(step, range) == Entry::kNever) return false;
  range.readers++;
  return true;
}

WeightsGate::Entry WeightsGate::try_read(StepId step, size_t r) {
  std::lock_guard lock(mutex_);
  const Entry now = entry(step, ranges_[r]);
  if (now == Entry::kIn) ranges_[r].readers++;
  return now;
}

void WeightsGate::leave_read(size_t ranges) {
  std::lock_guard lock(mutex_);
  for (size_t r = 0; r < ranges; r++) ranges_[r].readers--;
  changed_.notify_all();
}

void WeightsGate::want(StepId next) {
  if (next <= wanted_) return;
  wanted_ = next;
  changed_.notify_all();
}

void WeightsGate::enter_write(size_t r, StepId next) {
  std::unique_lock lock(mutex_);
  want(next);
  Range& range = ranges_[r];
  range.writers++;
  changed_.wait(lock, [&] { return range.readers == 0 && !range.writing; });
  range.writing = true;
  range.next = next;
}

bool WeightsGate::may_write(size_t r, StepId next) {
  std::lock_guard lock(mutex_);
  want(next);
  return ranges_[r].readers == 0 && !ranges_[r].writing;
}

void WeightsGate::leave_write(size_t r, bool written) {
  std::lock_guard lock(mutex_);
  Range& range = ranges_[r];
  FS_CHECK(range.writing);
  range.writing = false;
  range.writers--;
  if (written) range.at = range.next;
  changed_.notify_all();
}

void WeightsGate::end() {
  std::lock_guard lock(mutex_);
  ended_ = true;
  changed_.notify_all();
}

}  // namespace fastserve
