// The course of a training job, as arithmetic: told what happened, it says what to do.
#pragma once

#include <set>
#include <string>
#include <variant>
#include <vector>

#include "base/cancel.h"
#include "base/clock.h"
#include "base/ids.h"
#include "train/early_stop.h"
#include "train/loss_scaler.h"
#include "train/outer_shard.h"
#include "train/parameter_shard.h"
#include "train/plan.h"
#include "train/progress.h"
#include "train/recent_median.h"
#include "train/round_arrivals.h"
#include "train/spec.h"
#include "train/step_ledger.h"
#include "train/step_ranges.h"
#include "train/step_window.h"

namespace fastserve {

/// Where a job stands between two steps. With the weights and the optimiser it is all that resuming
/// needs: data order and learning rate follow from the step.
struct JobState {
  int64_t steps_done = 0;
  int64_t updates = 0;         ///< steps that were not skipped
  int64_t evaluated_at = -1;   ///< steps done at the last evaluation
  double validation_loss = 0;  ///< meaningful when evaluated_at >= 0
  LossScaler scaler;
  EarlyStop early;

  Json to_json() const;
  static Result<JobState> from_json(const Json& json, const std::string& where);
};

/// What one trainer is asked to compute.
struct WorkItem {
  enum class Kind : uint8_t { kGradient, kEvaluation };
  Kind kind = Kind::kGradient;
  uint64_t round = 0;  ///< names the step or evaluation in the answer
  uint32_t unit = 0;   ///< index in the round
  StepId step;
  StepId weights;  ///< that it reads, as the gate counts them: those of `step`, but for local steps
  Subtree subtree;  ///< microbatches of the step, or the one chunk of the evaluation
  Subtree whole;    ///< of which this is a piece, when a node has cut it up; else the same
  float scale = 1;  ///< of the gradient
  Claim claim;
  // Where `subtree` is a run of each step's microbatches and no node of its tree:
  uint32_t steps = 1;    ///< from `step` on
  uint32_t attempt = 0;  ///< names the displacement
};

/// What becomes of a step, and whose work each of its units was.
struct Commit {
  StepId step;
  bool applied = true;    ///< false: it is skipped, and its gradient dropped
  uint64_t repeated = 0;  ///< answers that came second, and were dropped
  std::vector<std::pair<Subtree, TrainerId>> units;  ///< in the order of their microbatches
};

// What the job asks for.
struct GiveWork {
  TrainerId trainer;
  WorkItem item;
};
struct ApplyStep {  ///< to every shard, which answers with shard_ready
  ApplyOrder order;
};
struct CloseRound {  ///< to every shard, which answers with shard_ready
  RoundClose order;
};
struct SkipStep {  ///< to every shard, which answers with shard_ready
  StepId step;
};
struct HoldStill {};   ///< no step is under way until go_on()
struct KeepBest {};    ///< copy the weights now: they are the best so far
struct TakeSnapshot {  ///< copy all state, answer with snapshot_taken; write it, answer with
                       ///< checkpoint_written
  JobState state;
};
struct Report {
  TrainProgress progress;
};
struct Warn {
  std::string line;
};
struct Finish {
  Result<TrainEnd> end;
};
using Action = std::variant<GiveWork, Commit, ApplyStep, CloseRound, SkipStep, HoldStill, KeepBest,
                            TakeSnapshot, Report, Warn, Finish>;
using Actions = std::vector<Action>;

/// Drives steps, evaluations and checkpoints.
///
/// Events come in through the calls below, in any order and as late as they like; what to do comes
/// back. Late and repeated events change nothing. After Finish nothing more is asked.
/// With local steps (TrainSpec::consistency) a round is some steps, of each of which every trainer
/// has a run of microbatches; a run is given away like a unit of a step, and counts once. With
/// loose consistency each trainer goes through its runs of the steps of a segment, and all meet at
/// its end. Threads:  not thread-safe. Promises: in exact jobs the weights' bits depend on the
/// settings and the data alone: neither on
///           how many trainers and shards there are, nor on who is lost when.
class TrainingJob {
 public:
  struct Setup {
    TrainSpec spec;  ///< with steps > 0
    TrainPlan plan;
    int shards = 1;
    uint64_t windows = 1;            ///< sequences of an epoch
    uint32_t evaluation_chunks = 0;  ///< 0: no validation split
    int64_t evaluation_counted = 0;
    bool checkpoints = false;
    /// Each trainer gets one run of the step's microbatches, as long as it is fast, and pushes few
    /// large sums: for trainers that share no memory. Changes no bits.
    bool ranges = false;
    /// The first trainer of each card gets the same run of every step's microbatches, which nobody
    /// else does while it is there: for members that add up what each of them computed.
    bool runs = false;
    const Clock* clock = nullptr;
    const CancelFlag* cancel = nullptr;  ///< may be null
  };
  TrainingJob(Setup setup, const JobState& state);

  /// No two trainers have one id: of one that was lost before it came nothing is wanted any more.
  Actions trainer_joined(TrainerId trainer) { return trainers_joined({&trainer, 1}); }
  Actions trainers_joined(std::span<const TrainerId> trainers);
  /// Its work goes to others. The last one's loss ends the job with `why`.
  Actions trainer_lost(TrainerId trainer, const Error& why);
  /// `losses`: summed loss of each microbatch (or of the chunk) of the unit.
  Actions work_done(TrainerId trainer, uint64_t round, uint32_t unit,
                    std::span<const double> losses);
  /// A shard has the whole step's gradient; `squares` of its tiles in their order.
  Actions shard_gathered(ShardId shard, StepId step, std::vector<double> squares);
  /// A shard has the displacement that the attempt was to make, of the round that `step` began; or,
  /// with loose consistency, has applied the run of `step` whose first microbatch `attempt` is.
  Actions displaced(ShardId shard, StepId step, uint32_t attempt);
  /// A shard has applied or skipped the step, or closed the round that it began.
  Actions shard_ready(ShardId shard, StepId step);
  Actions shard_failed(const Error& why);
  Actions snapshot_taken();
  Actions checkpoint_written(Status status);
  /// Asks for HoldStill before the next step, after which go_on() lets that begin. A job that ends
  /// first does not hold still.
  void hold_still() { hold_wanted_ = true; }
  Actions go_on();
  /// Now and then: looks for stragglers, and for a cancel, which drops the round at work.
  Actions tick();

  const JobState& state() const { return state_; }
  /// Microbatches of the current step that a trainer was given, and how many it does in a second:
  /// 0 while unknown. With `ranges` alone.
  double share(TrainerId trainer) const;
  double rate(TrainerId trainer) const;
  /// What is known of the outcome; the shell adds weights and memory.
  TrainOutcome outcome() const;

 private:
  enum class Phase { kIdle, kComputing, kApplying, kEvaluating, kCopying, kWriting, kHeld, kDone };

  bool cancelled() const { return setup_.cancel != nullptr && setup_.cancel->raised(); }
  bool last_step_done() const;
  void at_boundary(Actions& out);
  void begin_step(Actions& out);
  void begin_round(Phase phase, StepLedger ledger, Actions& out);
  void hand_out(Actions& out);
  bool local() const { return setup_.spec.consistency.local(); }
  void begin_local_round(Actions& out);
  void describe_local(WorkItem& item, TrainerId trainer);
  float run_scale(Subtree run) const;
  bool safe(TrainerId trainer) const;
  void close_round_if_whole(Actions& out);
  void commit_round(Actions& out) const;
  bool loose() const { return setup_.spec.consistency.loose(); }
  void begin_segment(Actions& out);
  void hand_out_runs(Actions& out);
  Actions run_done(TrainerId trainer, uint64_t round, uint32_t run, std::span<const double> losses);
  void take_whole_steps(Actions& out);
  Actions segment_closed(ShardId shard, StepId step);
  void note_time(int64_t steps);
  void note_pace(uint32_t microbatches);
  void close_step_if_whole(Actions& out);
  void close_step(double squares, Actions& out);
  Commit commit(bool applied) const;
  void close_evaluation(Actions& out);
  Error not_finite(const char* what) const;
  void finish(Result<TrainEnd> end, Actions& out);
  TrainProgress progress() const;

  Setup setup_;
  JobState state_;
  StepLayout layout_;
  std::vector<Subtree> units_;  // of a step
  Phase phase_ = Phase::kIdle;
  std::set<TrainerId> trainers_, lost_;
  StepRanges ranges_;
  StepLedger ledger_;
  uint64_t round_ = 0;
  uint32_t computed_ = 0;       // microbatches of the round
  RecentMedian pace_;           // of a step, by the half of its microbatches that came first
  std::vector<double> losses_;  // of the round: per microbatch or chunk
  std::vector<std::vector<double>> squares_;  // per shard
  int64_t round_steps_ = 1;                   // steps that the round makes
  RoundArrivals arrivals_;                    // local steps alone
  std::optional<StepWindow> window_;          // loose consistency alone, as what follows
  int64_t segment_ = 0;                       // its first step
  uint32_t attempts_ = 0;
  std::set<ShardId> answered_;  // shards that gathered, then shards that are ready
  int64_t snapshot_at_;
  bool writing_ = false, hold_wanted_ = false;
  Status checkpoint_;

  double loss_ = 0, learning_rate_ = 0, grad_norm_ = 0;
  std::vector<double> history_;
  int64_t skipped_ = 0, repeated_ = 0;
  Nanoseconds started_, step_started_{0}, step_time_{0}, train_time_{0};  // step_time_: smoothed
};

/// Steps of a job: as given, or as many as its epochs need.
int64_t resolve_steps(const TrainSpec& spec, uint64_t windows);

}  // namespace fastserve
