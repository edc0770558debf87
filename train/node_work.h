// What a node makes of the units it is given: pieces for its own trainers.
#pragma once

#include <deque>
#include <optional>
#include <vector>

#include "train/job.h"
#include "train/step_ledger.h"

namespace fastserve {

/// Shares out one unit after another among the trainers of one node.
///
/// A unit waits until the weights of its step are in place. A trainer's answer names its piece by
/// (round, unit) as it was told.
/// Threads:  not thread-safe.
/// Promises: a unit is answered once, with the losses of all its microbatches in their order.
class NodeWork {
 public:
  /// `trainers` of this node, named 0, 1, ...
  explicit NodeWork(uint32_t trainers);

  struct Piece {
    uint32_t trainer;
    WorkItem item;
  };
  struct UnitDone {
    WorkItem::Kind kind;
    uint64_t round;  ///< as the coordinator gave it
    uint32_t unit;
    std::vector<double> losses;
  };

  void give(WorkItem unit);
  /// The weights of `step` are in place. Units of earlier steps are forgotten.
  void weights_ready(StepId step);
  /// The weights are being changed.
  void weights_moving() { ready_.reset(); }
  /// Whatever can be handed out now.
  std::vector<Piece> hand_out(Nanoseconds now);
  std::optional<UnitDone> done(uint32_t trainer, uint64_t round, uint32_t piece,
                               std::span<const double> losses);
  /// The unit at work, if any, is no longer asked for.
  void forget(uint64_t round);
  /// The trainer is gone: others compute what it was at. Requires another.
  void lose(uint32_t trainer);
  size_t trainers() const { return trainers_.size(); }

  /// Pieces of a unit: small enough that trainers end at about the same time.
  static uint32_t piece_size(uint32_t microbatches, uint32_t trainers);

 private:
  void begin_next();

  std::vector<uint32_t> trainers_;
  std::optional<StepId> ready_;
  std::deque<WorkItem> waiting_;
  std::optional<WorkItem> current_;
  uint64_t round_ = 0;  // names the unit at work to the trainers
  std::vector<Subtree> pieces_;
  std::vector<double> losses_;
  StepLedger ledger_;
};

}  // namespace fastserve
