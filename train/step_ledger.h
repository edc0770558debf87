// Who computes which unit of work, and that each counts exactly once.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"

namespace fastserve {

/// Raised by the trainer that begins a unit, so that another one which has it queued too passes it
/// by.
using Claim = std::shared_ptr<std::atomic<bool>>;

/// One unit given to one trainer.
struct Handout {
  TrainerId trainer;
  uint32_t unit = 0;
  Claim claim;
};

/// Shares out the units 0..n-1 of one round (a step, or an evaluation).
///
/// Every trainer has one unit at work and one queued, so that no round trip idles it. One that runs
/// dry is given what another has queued: whoever begins first claims it. With `owners` each unit
/// waits for its own trainer instead, and nothing is taken from a queue: the trainers share no
/// memory in which to claim. The unit of a lost or a straggling trainer is given out anew to
/// anybody; the first result counts.
/// Threads:  not thread-safe.
/// Promises: complete() says true exactly once per unit, and once more if the unit was lost since.
class StepLedger {
 public:
  explicit StepLedger(uint32_t units = 0);
  /// Unit i belongs to owners[i].
  explicit StepLedger(std::vector<TrainerId> owners);

  void join(TrainerId trainer);
  /// Its unfinished units are open again. So are those it finished, if `results_too`: what it sent
  /// elsewhere beside its word of completion may not have arrived.
  void lose(TrainerId trainer, bool results_too = false);
  /// True when this is the unit's first result.
  bool complete(TrainerId trainer, uint32_t unit);
  bool done() const { return left_ == 0; }
  bool is_done(uint32_t unit) const { return units_[unit].state == Unit::kDone; }
  /// Whose result counted. Requires a unit that is done.
  TrainerId done_by(uint32_t unit) const { return units_[unit].by; }

  /// All that can be given out now.
  std::vector<Handout> hand_out(Nanoseconds now);
  /// Opens units whose trainer has been at them for `limit`, once per limit, when somebody is idle.
  void reopen_overdue(Nanoseconds now, Nanoseconds limit);

  size_t trainers() const { return queues_.size(); }
  int64_t repeated() const { return repeated_; }  ///< results that came second

 private:
  struct Unit {
    enum { kOpen, kOut, kDone } state = kOpen;
    bool reopened = false;
    Claim claim;
    Nanoseconds since{0};
    TrainerId by;  // whose result counted
  };
  /// The first open unit that the trainer may have; nothing when there is none.
  std::optional<uint32_t> take_open(TrainerId trainer);
  Handout give(TrainerId trainer, uint32_t unit, Nanoseconds now);
  bool steal_for(TrainerId trainer, Nanoseconds now, std::vector<Handout>& out);

  std::vector<Unit> units_;
  std::vector<TrainerId> owners_;  // empty: everybody's
  std::deque<uint32_t> open_;
  std::set<TrainerId> dry_;  // found nothing among what is open, and nothing was opened since
  std::map<TrainerId, std::deque<uint32_t>> queues_;  // in the order given; the first is at work
  uint32_t left_;
  int64_t repeated_ = 0;
};

}  // namespace fastserve
