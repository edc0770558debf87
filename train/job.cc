#include "train/job.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "train/schedule.h"

namespace fastserve {
namespace {

/// A unit at work for this long is given to somebody idle as well. `pace` has no stragglers in it:
/// how long they were waited for is not to be how long they will be.
Nanoseconds straggler_limit(Nanoseconds pace) {
  if (pace.count() == 0) return std::chrono::minutes(1);
  return std::max<Nanoseconds>(std::chrono::seconds(2), 4 * pace);
}

}  // namespace

int64_t resolve_steps(const TrainSpec& spec, uint64_t windows) {
  if (spec.steps > 0) return spec.steps;
  const double sequences = double(spec.batch) * spec.accumulation;
  return std::max<int64_t>(1, std::llround(spec.epochs * static_cast<double>(windows) / sequences));
}

TrainingJob::TrainingJob(Setup setup, const JobState& state)
    : setup_(std::move(setup)),
      state_(state),
      layout_(static_cast<uint32_t>(setup_.plan.microbatches)),
      units_(setup_.runs ? layout_.runs(static_cast<uint32_t>(setup_.plan.cards))
                         : layout_.units(setup_.plan.unit)),
      squares_(static_cast<size_t>(setup_.shards)),
      snapshot_at_(state.steps_done > 0 ? state.steps_done : -1),
      started_(setup_.clock->now()) {
  FS_CHECK(setup_.spec.steps > 0 && setup_.shards >= 1);
}

bool TrainingJob::last_step_done() const {
  return state_.steps_done >= setup_.spec.steps || state_.early.should_stop(setup_.spec.patience);
}

Actions TrainingJob::trainers_joined(std::span<const TrainerId> trainers) {
  Actions out;
  if (phase_ == Phase::kDone) return out;
  for (const TrainerId trainer : trainers) {
    if (lost_.contains(trainer)) continue;
    trainers_.insert(trainer);
    ledger_.join(trainer);
    ranges_.join(trainer);
    if (window_) window_->join(trainer);
  }
  if (phase_ == Phase::kIdle)
    at_boundary(out);
  else
    hand_out(out);
  return out;
}

Actions TrainingJob::trainer_lost(TrainerId trainer, const Error& why) {
  Actions out;
  lost_.insert(trainer);
  if (phase_ == Phase::kDone || trainers_.erase(trainer) == 0) return out;
  ledger_.lose(trainer, phase_ == Phase::kComputing && !safe(trainer));
  ranges_.lose(trainer);
  if (window_) window_->lose(trainer);
  if (trainers_.empty()) {
    finish(why, out);
    return out;
  }
  out.push_back(Warn{fmt::format("trainer {} is lost ({}); {} go on", trainer.value, why.message(),
                                 trainers_.size())});
  hand_out(out);
  return out;
}

/// Between two steps: what is due comes in the order evaluation, checkpoint, end, next step.
void TrainingJob::at_boundary(Actions& out) {
  phase_ = Phase::kIdle;
  const int64_t done = state_.steps_done;
  // A round of local steps may pass over the step at which something was due.
  const auto due = [&](int64_t every) {
    return every > 0 && done > 0 && done % every < round_steps_;
  };
  const bool ending = cancelled() || last_step_done();
  const bool evaluation_due = setup_.evaluation_chunks > 0 && state_.evaluated_at != done &&
                              done > 0 && (last_step_done() || due(setup_.spec.evaluate_every));
  if (!cancelled() && evaluation_due) {
    begin_round(Phase::kEvaluating, StepLedger(setup_.evaluation_chunks), out);
    return;
  }
  const bool wanted = ending || due(setup_.spec.checkpoint_every);
  if (setup_.checkpoints && wanted && snapshot_at_ != done) {
    phase_ = writing_ ? Phase::kWriting : Phase::kCopying;  // one write at a time
    if (!writing_) out.push_back(TakeSnapshot{state_});
    return;
  }
  if (ending) {
    if (writing_)
      phase_ = Phase::kWriting;
    else if (last_step_done() && !evaluation_due)
      finish(done >= setup_.spec.steps ? TrainEnd::kAllSteps : TrainEnd::kEarlyStop, out);
    else
      finish(TrainEnd::kCancelled, out);
    return;
  }
  if (trainers_.empty()) return;
  if (std::exchange(hold_wanted_, false)) {
    phase_ = Phase::kHeld;
    out.push_back(HoldStill{});
    return;
  }
  step_started_ = setup_.clock->now();
  begin_step(out);
}

void TrainingJob::begin_step(Actions& out) {
  if (local()) return begin_local_round(out);
  if (loose()) return begin_segment(out);
  StepLedger ledger(static_cast<uint32_t>(units_.size()));
  if (setup_.ranges) {
    std::vector<TrainerId> owners;
    units_ = ranges_.cut(layout_, step_started_, owners);
    ledger = StepLedger(std::move(owners));
  } else if (setup_.runs) {
    std::vector<TrainerId> owners;
    for (uint32_t i = 0; i < units_.size(); i++) owners.push_back({i});
    ledger = StepLedger(std::move(owners));
  }
  begin_round(Phase::kComputing, std::move(ledger), out);
}

void TrainingJob::begin_round(Phase phase, StepLedger ledger, Actions& out) {
  phase_ = phase;
  round_++;
  repeated_ += ledger_.repeated();
  ledger_ = std::move(ledger);
  for (const TrainerId trainer : trainers_) ledger_.join(trainer);
  const auto steps = static_cast<size_t>(round_steps_);
  losses_.assign(
      phase == Phase::kComputing ? steps * layout_.microbatches() : setup_.evaluation_chunks, 0);
  answered_.clear();
  computed_ = 0;
  hand_out(out);
}

void TrainingJob::hand_out(Actions& out) {
  if (phase_ != Phase::kComputing && phase_ != Phase::kEvaluating) return;
  const bool gradient = phase_ == Phase::kComputing;
  if (gradient && loose()) return hand_out_runs(out);
  const bool half = setup_.spec.precision == Precision::kFloat16;
  const double loss_scale = half ? state_.scaler.scale : 1;
  for (Handout& given : ledger_.hand_out(setup_.clock->now())) {
    WorkItem item;
    item.kind = gradient ? WorkItem::Kind::kGradient : WorkItem::Kind::kEvaluation;
    item.round = round_;
    item.unit = given.unit;
    item.step = item.weights = {static_cast<uint64_t>(state_.steps_done)};
    item.subtree = gradient ? units_[given.unit] : Subtree{given.unit, 1};
    item.whole = item.subtree;
    item.scale = static_cast<float>(loss_scale / static_cast<double>(setup_.plan.tokens_per_step));
    item.claim = std::move(given.claim);
    if (gradient && local()) describe_local(item, given.trainer);
    out.push_back(GiveWork{given.trainer, std::move(item)});
  }
}

Actions TrainingJob::work_done(TrainerId trainer, uint64_t round, uint32_t unit,
                               std::span<const double> losses) {
  Actions out;
  if (phase_ == Phase::kComputing && loose()) return run_done(trainer, round, unit, losses);
  if (round != round_ || (phase_ != Phase::kComputing && phase_ != Phase::kEvaluating)) return out;
  if (!trainers_.contains(trainer)) return out;  // lost since; its gradients may be lost as well
  const bool gradient = phase_ == Phase::kComputing;
  const size_t units = gradient ? units_.size() : setup_.evaluation_chunks;
  const auto steps = static_cast<uint32_t>(gradient ? round_steps_ : 1);
  if (unit >= units || losses.size() != (gradient ? size_t{units_[unit].count} * steps : 1))
    return trainer_lost(trainer,
                        {ErrorCode::kCorrupt, "answered for work that nobody has", "", ""});
  const Subtree subtree = gradient ? units_[unit] : Subtree{unit, 1};
  const auto finite = [](double loss) { return std::isfinite(loss); };
  if (gradient && local() && !std::all_of(losses.begin(), losses.end(), finite)) {
    finish(not_finite("loss or gradient"), out);
    return out;
  }
  const bool first = ledger_.complete(trainer, unit);
  if (first && gradient) note_pace(subtree.count);
  if (first)
    for (size_t step = 0; step < steps; step++)
      std::ranges::copy(
          losses.subspan(step * subtree.count, subtree.count),
          std::span(losses_).subspan(step * layout_.microbatches()).begin() + subtree.first);
  if (gradient) ranges_.completed(trainer, subtree.count * steps, setup_.clock->now());
  if (!ledger_.done())
    hand_out(out);
  else if (gradient && local())
    close_round_if_whole(out);
  else if (gradient)
    close_step_if_whole(out);
  else
    close_evaluation(out);
  return out;
}

Actions TrainingJob::shard_gathered(ShardId shard, StepId step, std::vector<double> squares) {
  Actions out;
  if (phase_ != Phase::kComputing || static_cast<int64_t>(step.value) != state_.steps_done)
    return out;
  squares_[shard.value] = std::move(squares);
  answered_.insert(shard);
  close_step_if_whole(out);
  return out;
}

double TrainingJob::share(TrainerId trainer) const { return ranges_.share(trainer); }
double TrainingJob::rate(TrainerId trainer) const { return ranges_.rate(trainer); }

Error TrainingJob::not_finite(const char* what) const {
  const double rate = learning_rate_at(setup_.spec, state_.steps_done);
  return {ErrorCode::kInvalidArgument,
          fmt::format("the {} is not finite at step {}", what, state_.steps_done), "",
          fmt::format("lower the learning rate ({:g} here), warm up for longer, or look for broken "
                      "data",
                      rate)};
}

void TrainingJob::close_step_if_whole(Actions& out) {
  if (!ledger_.done() || answered_.size() != static_cast<size_t>(setup_.shards)) return;
  double total = 0;
  for (const std::vector<double>& of_shard : squares_)  // tile by tile: the same for any shards
    for (const double square : of_shard) total += square;
  close_step(total, out);
}

void TrainingJob::close_step(double squares, Actions& out) {
  const bool half = setup_.spec.precision == Precision::kFloat16;
  const double loss_scale = half ? state_.scaler.scale : 1;
  double loss = 0;
  for (const double part : losses_) loss += part;
  loss_ = loss / static_cast<double>(setup_.plan.tokens_per_step);
  learning_rate_ = learning_rate_at(setup_.spec, state_.steps_done);
  grad_norm_ = std::sqrt(squares) / loss_scale;
  const StepId step{static_cast<uint64_t>(state_.steps_done)};
  phase_ = Phase::kApplying;
  answered_.clear();
  if (!std::isfinite(loss_) || !std::isfinite(grad_norm_)) {
    if (half && state_.scaler.overflow()) {
      skipped_++;
      out.push_back(commit(false));
      out.push_back(SkipStep{step});
      return;
    }
    finish(not_finite(std::isfinite(loss_) ? "gradient" : "loss"), out);
    return;
  }
  if (half) state_.scaler.good();
  ApplyOrder order;
  order.step = step;
  order.learning_rate = learning_rate_;
  const double clip = setup_.spec.clip_norm;
  order.grad_scale = (clip > 0 ? std::min(1.0, clip / (grad_norm_ + 1e-6)) : 1.0) / loss_scale;
  order.update = ++state_.updates;
  out.push_back(commit(true));
  out.push_back(ApplyStep{order});
}

Commit TrainingJob::commit(bool applied) const {
  Commit commit;
  commit.step = {static_cast<uint64_t>(state_.steps_done)};
  commit.applied = applied;
  commit.repeated = static_cast<uint64_t>(ledger_.repeated());
  for (uint32_t i = 0; i < units_.size(); i++)  // a run in nodes; a node is itself
    for (const Subtree part : layout_.cover(units_[i].first, units_[i].count))
      commit.units.emplace_back(part, ledger_.done_by(i));
  return commit;
}

Actions TrainingJob::shard_ready(ShardId shard, StepId step) {
  if (loose()) return segment_closed(shard, step);
  Actions out;
  if (phase_ != Phase::kApplying || static_cast<int64_t>(step.value) != state_.steps_done)
    return out;
  answered_.insert(shard);
  if (answered_.size() != static_cast<size_t>(setup_.shards)) return out;
  note_time(round_steps_);
  if (!local()) history_.push_back(loss_);
  state_.steps_done += round_steps_;
  out.push_back(Report{progress()});
  at_boundary(out);
  return out;
}

/// So many steps have ended now.
void TrainingJob::note_time(int64_t steps) {
  const Nanoseconds now = setup_.clock->now(), took = now - std::exchange(step_started_, now);
  train_time_ += took;
  const Nanoseconds each = took / steps;
  step_time_ = step_time_.count() == 0 ? each : step_time_ + (each - step_time_) / 16;
}

/// So many microbatches more of the round have been computed.
void TrainingJob::note_pace(uint32_t microbatches) {
  const uint32_t half = (layout_.microbatches() + 1) / 2;
  const bool had_half = computed_ >= half;
  computed_ += microbatches;
  if (!had_half && computed_ >= half)
    pace_.add(2 * (setup_.clock->now() - step_started_) / round_steps_);
}

void TrainingJob::close_evaluation(Actions& out) {
  double loss = 0;
  for (const double part : losses_) loss += part;  // chunk by chunk: the same for any trainers
  loss /= static_cast<double>(setup_.evaluation_counted);
  if (!std::isfinite(loss)) {
    finish(not_finite("validation loss"), out);
    return;
  }
  state_.validation_loss = loss;
  state_.evaluated_at = state_.steps_done;
  if (state_.early.evaluated(state_.steps_done, state_.validation_loss)) out.push_back(KeepBest{});
  TrainProgress report = progress();
  report.validation_loss = state_.validation_loss;
  out.push_back(Report{std::move(report)});
  at_boundary(out);
}

Actions TrainingJob::shard_failed(const Error& why) {
  Actions out;
  if (phase_ != Phase::kDone) finish(why, out);
  return out;
}

Actions TrainingJob::snapshot_taken() {
  Actions out;
  if (phase_ != Phase::kCopying) return out;
  writing_ = true;
  snapshot_at_ = state_.steps_done;
  at_boundary(out);
  return out;
}

Actions TrainingJob::go_on() {
  Actions out;
  if (phase_ == Phase::kHeld) at_boundary(out);
  return out;
}

Actions TrainingJob::checkpoint_written(Status status) {
  Actions out;
  writing_ = false;
  if (!status.ok())
    out.push_back(Warn{"the checkpoint was not written: " + status.error().message()});
  checkpoint_ = std::move(status);
  if (phase_ == Phase::kWriting) at_boundary(out);
  return out;
}

Actions TrainingJob::tick() {
  Actions out;
  const bool at_work = phase_ == Phase::kComputing || phase_ == Phase::kEvaluating;
  // No weight has changed since the round began: what was computed of it can be dropped.
  if (loose() && phase_ == Phase::kComputing) {
    // Shards have applied of it what has come: it is brought to where all meet.
    if (cancelled()) window_->end_early();
    window_->reopen_overdue(setup_.clock->now(), straggler_limit(window_->pace()));
    take_whole_steps(out);
    return out;
  }
  if (cancelled() && (at_work || phase_ == Phase::kIdle)) {
    at_boundary(out);
    return out;
  }
  if (!at_work) return out;
  const bool local_round = local() && phase_ == Phase::kComputing;
  if (setup_.runs && phase_ == Phase::kComputing) return out;  // a slow card is waited for
  ledger_.reopen_overdue(setup_.clock->now(),
                         straggler_limit(pace_.median() * (local_round ? round_steps_ : 1)));
  hand_out(out);
  return out;
}

void TrainingJob::finish(Result<TrainEnd> end, Actions& out) {
  phase_ = Phase::kDone;
  out.push_back(Finish{std::move(end)});
}

}  // namespace fastserve
