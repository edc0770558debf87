// What a node does with units of local steps: one step after another, by itself.
#pragma once

#include <optional>
#include <variant>
#include <vector>

#include "train/node_work.h"
#include "train/outer_shard.h"

namespace fastserve {

/// Leads a node's trainers and ranges through the steps of a unit, as TrainingJob leads a whole
/// job. With loose consistency a unit is one step, whose gradient is sent instead of applied, and
/// the next one waits for the weights that come back.
///
/// Told what happened, it says what to do; late answers change nothing. What is given to trainers
/// goes through the NodeWork.
/// Threads:  not thread-safe.
/// Promises: a unit is answered once, after its displacement is on its way from every range. Newer
///           weights end the unit at work.
class LocalRounds {
 public:
  /// `work` must outlive this. `ranges` of the node, all of which answer.
  LocalRounds(const TrainSpec& spec, NodeWork& work, std::vector<ParameterShard::Range> ranges)
      : spec_(spec), work_(work), ranges_(std::move(ranges)) {}

  // To every range.
  struct Begin {
    StepId round;
    uint32_t microbatches;
  };
  struct Apply {
    ApplyOrder order;
  };
  struct Skip {
    StepId step;
  };
  struct Displace {
    StepId round;
    uint32_t attempt, share;
  };
  struct Push {
    StepId step;
    Subtree run;
    float scale;
  };
  // To the coordinator.
  struct Done {
    NodeWork::UnitDone unit;
  };
  using Order = std::variant<Begin, Apply, Skip, Displace, Push, Done>;
  using Orders = std::vector<Order>;

  /// Attempts ascend.
  Orders give(WorkItem unit);
  /// The weights of `step`, or of this version, are in place, on every range.
  Orders weights_ready(StepId step);
  /// The trainers have done a step of the unit.
  Orders computed(const NodeWork::UnitDone& step);
  /// A range has the whole gradient of a step.
  Orders gathered(uint32_t range, StepId step, std::vector<double> squares);
  /// A range has applied or skipped a step.
  Orders applied(uint32_t range, StepId step);
  /// A range's displacement, or gradient, is on its way.
  Orders displaced(uint32_t range, StepId round);

 private:
  enum class Phase { kComputing, kApplying, kDisplacing };

  void begin_next(Orders& out);
  void begin_step();
  void close_step_if_whole(Orders& out);
  void report(Orders& out);
  /// True when all have answered.
  bool answered(uint32_t range);
  StepId at() const { return {unit_->step.value + done_}; }

  const TrainSpec spec_;
  NodeWork& work_;
  const std::vector<ParameterShard::Range> ranges_;
  std::optional<StepId> ready_;
  bool fresh_ = false;  // loose: no unit has been begun with these weights
  std::vector<WorkItem> waiting_;
  std::optional<WorkItem> unit_;
  uint32_t done_ = 0;  // steps of it
  uint32_t last_attempt_ = 0;
  uint64_t turn_ = 0;  // names the step at work to the NodeWork
  Phase phase_ = Phase::kComputing;
  bool losses_here_ = false;
  std::vector<std::optional<std::vector<double>>> squares_;  // by range
  std::vector<bool> answered_;
  std::vector<double> losses_;  // of the unit, step by step
  LossScaler scaler_;
};

}  // namespace fastserve
