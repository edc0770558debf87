// Which run of a step's microbatches each trainer gets: as long as the trainer is fast.
#pragma once

#include <map>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "train/step_layout.h"

namespace fastserve {

/// Measures trainers, and cuts steps accordingly.
///
/// A run is handed out as the fewest subtrees that make it up, and each costs a push of the whole
/// gradient: so a cut is moved, by a tenth of an even share at most, to where the trees meet.
/// Threads:  not thread-safe.
/// Promises: changes who computes what, never a bit of the result.
class StepRanges {
 public:
  void join(TrainerId trainer) { trainers_.try_emplace(trainer); }
  void lose(TrainerId trainer) { trainers_.erase(trainer); }

  /// The step's subtrees in order, and whose each is. Requires a trainer.
  std::vector<Subtree> cut(const StepLayout& layout, Nanoseconds now,
                           std::vector<TrainerId>& owners);
  /// The same for trainers that keep what they compute: one run each, cut where the shares say,
  /// whatever the tree. A trainer so slow that its share is none gets no run.
  std::vector<Subtree> runs(const StepLayout& layout, Nanoseconds now,
                            std::vector<TrainerId>& owners);
  /// A trainer has done `microbatches` of the current step.
  void completed(TrainerId trainer, uint32_t microbatches, Nanoseconds now);

  /// Instead, where steps overlap: it took that long for so many.
  void measured(TrainerId trainer, uint32_t microbatches, Nanoseconds took);

  double share(TrainerId trainer) const;  ///< of the current step, 0 to 1
  double rate(TrainerId trainer) const;   ///< microbatches a second; 0: not measured yet

 private:
  struct Trainer {
    double rate = 0;
    uint32_t given = 0, done = 0;  // of the current step
    Nanoseconds last{0};           // when it was last heard of in the step
    double share = 0;
  };
  void measure();
  /// How many microbatches each trainer is given, in their order; `play`: of an even share.
  void place_cuts(uint32_t microbatches, Nanoseconds now, double play);

  std::map<TrainerId, Trainer> trainers_;
  Nanoseconds started_{0};
};

}  // namespace fastserve
