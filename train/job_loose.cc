// Segments of a job with loose consistency: what TrainingJob does otherwise when trainers go
// through steps at their own pace, and meet where an evaluation or a checkpoint is due.
#include <algorithm>
#include <cmath>

#include "train/job.h"
#include "train/sampler.h"
#include "train/schedule.h"

namespace fastserve {

void TrainingJob::begin_segment(Actions& out) {
  const int64_t done = state_.steps_done;
  int64_t end = setup_.spec.steps;
  for (const int64_t every : {setup_.spec.evaluate_every, setup_.spec.checkpoint_every})
    if (every > 0) end = std::min(end, (done / every + 1) * every);
  segment_ = done;
  phase_ = Phase::kComputing;
  round_++;
  const Consistency& wanted = setup_.spec.consistency;
  const uint64_t ahead = wanted.kind == Consistency::Kind::kStale
                             ? static_cast<uint64_t>(wanted.bound)
                             : static_cast<uint64_t>(end - done);
  window_.emplace(layout_, ahead, static_cast<size_t>(setup_.shards));
  window_->begin({static_cast<uint64_t>(done)}, {static_cast<uint64_t>(end)});
  for (const TrainerId trainer : trainers_) window_->join(trainer);
  hand_out(out);
}

float TrainingJob::run_scale(Subtree run) const {
  const Sampler::Shape shape{setup_.spec.block, setup_.plan.sequences, setup_.plan.microbatches};
  const auto first = Sampler::sequences_of(shape, static_cast<int>(run.first)).first;
  const auto end = Sampler::sequences_of(shape, static_cast<int>(run.end()) - 1).second;
  return 1 / static_cast<float>((end - first) * static_cast<uint64_t>(shape.block));
}

void TrainingJob::hand_out_runs(Actions& out) {
  for (const StepWindow::Given& given : window_->hand_out(ranges_, setup_.clock->now())) {
    WorkItem item;
    item.round = round_ << 32 | (given.step.value - static_cast<uint64_t>(segment_));
    item.unit = given.run;
    item.step = item.weights = given.step;
    item.subtree = item.whole = given.microbatches;
    item.scale = run_scale(given.microbatches);
    item.attempt = ++attempts_;
    out.push_back(GiveWork{given.trainer, std::move(item)});
  }
}

Actions TrainingJob::run_done(TrainerId trainer, uint64_t round, uint32_t run,
                              std::span<const double> losses) {
  Actions out;
  const StepId step{static_cast<uint64_t>(segment_) + (round & 0xffffffff)};
  if (round >> 32 != round_ || phase_ != Phase::kComputing || !trainers_.contains(trainer))
    return out;
  const auto finite = [](double loss) { return std::isfinite(loss); };
  if (!std::all_of(losses.begin(), losses.end(), finite)) {
    finish(not_finite("loss or gradient"), out);
    return out;
  }
  if (!window_->complete(trainer, step, run, losses, ranges_, setup_.clock->now()))
    return trainer_lost(trainer,
                        {ErrorCode::kCorrupt, "answered for work that nobody has", "", ""});
  take_whole_steps(out);
  return out;
}

void TrainingJob::take_whole_steps(Actions& out) {
  while (const auto whole = window_->take_whole()) {
    double loss = 0;
    for (const double part : whole->losses) loss += part;
    loss_ = loss / static_cast<double>(setup_.plan.tokens_per_step);
    history_.push_back(loss_);
    learning_rate_ = learning_rate_at(setup_.spec, state_.steps_done);
    Commit commit{whole->step, true, whole->repeated, {}};
    repeated_ += static_cast<int64_t>(whole->repeated);
    for (const StepWindow::Run& run : whole->runs)
      for (const Subtree part : layout_.cover(run.microbatches.first, run.microbatches.count))
        commit.units.emplace_back(part, run.by);
    out.push_back(std::move(commit));
    state_.steps_done++;
    state_.updates++;
    note_time(1);
    out.push_back(Report{progress()});
  }
  if (!window_->over()) return hand_out(out);
  phase_ = Phase::kApplying;
  answered_.clear();
  // A cancelled segment may have made no step.
  const auto steps = static_cast<uint32_t>(state_.steps_done - segment_);
  if (steps == 0) return at_boundary(out);
  out.push_back(CloseRound{{{static_cast<uint64_t>(segment_)}, steps, {}}});
}

Actions TrainingJob::segment_closed(ShardId shard, StepId step) {
  Actions out;
  if (phase_ != Phase::kApplying || static_cast<int64_t>(step.value) != segment_) return out;
  answered_.insert(shard);
  if (answered_.size() == static_cast<size_t>(setup_.shards)) at_boundary(out);
  return out;
}

}  // namespace fastserve
