// The steps of a job with loose consistency that are under way at once.
#pragma once

#include <deque>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "base/clock.h"
#include "train/recent_median.h"
#include "train/step_ranges.h"

namespace fastserve {

/// Shares out the steps of a segment, from one meeting of all trainers to the next. Each step is
/// cut into one run for each trainer when the first of them begins it; a trainer may be at most
/// `ahead` steps ahead of the last step that is not whole.
///
/// A run is finished once a trainer has said so and every shard has applied it. The run of a lost
/// trainer, or of one that is overdue, goes to whoever is idle; shards apply the first that comes.
/// Threads:  not thread-safe.
/// Promises: a run of a step is finished once. Steps are taken off in their order, whole.
class StepWindow {
 public:
  StepWindow(StepLayout layout, uint64_t ahead, size_t shards)
      : layout_(layout), ahead_(ahead), shards_(shards) {}

  struct Run {
    Subtree microbatches;
    TrainerId by;  ///< that it was given to, and then that has finished it
  };
  struct Given {
    TrainerId trainer;
    StepId step;
    uint32_t run = 0;
    Subtree microbatches;
  };
  struct Whole {
    StepId step;
    std::vector<Run> runs;
    std::vector<double> losses;  ///< by microbatch
    uint64_t repeated = 0;
  };

  /// Steps from `first` up to `end`. Requires that none is under way.
  void begin(StepId first, StepId end);
  /// No step begins any more that has not begun.
  void end_early() { end_ = next(); }
  void join(TrainerId trainer) { idle_.insert(trainer); }
  void lose(TrainerId trainer);

  /// What can be handed out now. `ranges` know the trainers that joined.
  std::vector<Given> hand_out(StepRanges& ranges, Nanoseconds now);
  /// `losses` of each of the run's microbatches. False for a run that does not exist.
  bool complete(TrainerId trainer, StepId step, uint32_t run, std::span<const double> losses,
                StepRanges& ranges, Nanoseconds now);
  /// A shard has applied the run that begins with this microbatch.
  void arrived(ShardId shard, StepId step, uint32_t first);
  /// Runs that have been at work for `limit` are given to somebody else, too, once.
  void reopen_overdue(Nanoseconds now, Nanoseconds limit);
  /// How long a run takes, most of the time. 0 while unknown.
  Nanoseconds pace() const { return pace_.median(); }
  /// The lowest step, once it is whole.
  std::optional<Whole> take_whole();
  /// Every step of the segment has been taken.
  bool over() const { return steps_.empty() && next() >= end_; }
  StepId lowest() const { return first_; }

 private:
  struct Piece {
    explicit Piece(Run whose) : run(whose) {}
    Run run;
    enum { kOpen, kOut, kDone } state = kOpen;
    bool anybody = false, reopened = false;
    Nanoseconds since{0};
    std::set<ShardId> at;
  };
  struct Step {
    std::vector<Piece> pieces;
    std::vector<double> losses;
    uint64_t repeated = 0;
  };
  StepId next() const { return {first_.value + steps_.size()}; }
  Step* find(StepId step);
  bool finished(const Piece& piece) const {
    return piece.state == Piece::kDone && piece.at.size() == shards_;
  }
  std::optional<Given> take(TrainerId trainer, Nanoseconds now);
  void cut(StepRanges& ranges, Nanoseconds now);

  StepLayout layout_;
  uint64_t ahead_;
  size_t shards_;
  StepId first_, end_;
  std::deque<Step> steps_;  // from first_ on
  std::set<TrainerId> idle_;
  RecentMedian pace_;
};

}  // namespace fastserve
