// Keeps those who read the weights and those who change them apart.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <vector>

#include "base/ids.h"

namespace fastserve {

/// Readers are passes over the weights of one step. Writers take the weights to the next step,
/// range by range, several at once. Once a writer has come for a later step, readers of an earlier
/// one are sent away, those that wait as well: what they would compute is no longer asked for.
///
/// A reader either takes all ranges at once, as they are, or one after another from the first on
/// and each once it has come to the reader's step: so it can begin while later ranges are still
/// coming. What it has it keeps to its end.
/// Threads:  any.
/// Promises: nobody waits for ever: a writer waits for readers that have its range, and those wait
///           for nothing but ranges of their own step, or are sent away by that writer; end() sends
///           all of them away.
class WeightsGate {
 public:
  /// How many ranges there are; one to begin with. Before anybody uses it.
  void divide(size_t ranges) { ranges_.assign(ranges, {}); }
  size_t ranges() const { return ranges_.size(); }

  /// Takes all ranges, at whatever step they are, once no writer is there. False when the weights
  /// have gone past `step`. After true, leave_read() of all.
  bool enter_read(StepId step);
  /// Takes one range, once it is at `step`. False when it will not come to that. The reader has all
  /// ranges before it, and leaves with them whether this is true or not.
  bool enter_read(StepId step, size_t range);
  /// Gives back the first `ranges`.
  void leave_read(size_t ranges);

  /// Waits for readers of the range. `next`: the step whose weights are being written.
  void enter_write(size_t range, StepId next);
  /// The range is at that step; or, unless it was `written`, where it was.
  void leave_write(size_t range, bool written = true);

  /// Sends away who reads or will read. Writers are let in as before.
  void end();

  // The same without waiting, for who has one thread for all of it.
  enum class Entry { kIn, kNotYet, kNever };
  Entry try_read(StepId step, size_t range);
  /// Whether enter_write() would not wait. If it would, it is still known that a writer has come.
  bool may_write(size_t range, StepId next);

 private:
  struct Range {
    int readers = 0;
    int writers = 0;  // waiting ones, too
    bool writing = false;
    StepId next;               // of the writer at work
    std::optional<StepId> at;  // nothing: it has not been written
  };
  Entry entry(StepId step, const Range& range) const;
  bool gone(StepId step) const { return ended_ || wanted_ > step; }
  void want(StepId next);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Range> ranges_{1};
  StepId wanted_;
  bool ended_ = false;
};

}  // namespace fastserve
