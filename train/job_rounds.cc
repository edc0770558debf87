// Rounds of local steps: what TrainingJob does otherwise when nodes train by themselves for a
// while.
#include <algorithm>

#include "train/job.h"
#include "train/schedule.h"

namespace fastserve {

void TrainingJob::begin_local_round(Actions& out) {
  round_steps_ =
      std::min<int64_t>(setup_.spec.consistency.bound, setup_.spec.steps - state_.steps_done);
  std::vector<TrainerId> owners;
  units_ = ranges_.runs(layout_, step_started_, owners);
  arrivals_.begin(static_cast<size_t>(setup_.shards));
  begin_round(Phase::kComputing, StepLedger(std::move(owners)), out);
}

void TrainingJob::describe_local(WorkItem& item, TrainerId trainer) {
  // Each node steps by the mean over its own tokens; half precision is scaled there, too.
  item.scale = run_scale(item.subtree);
  item.steps = static_cast<uint32_t>(round_steps_);
  item.attempt = arrivals_.given(item.unit, trainer);
}

/// Whether all that counts of the trainer's is where it belongs.
bool TrainingJob::safe(TrainerId trainer) const {
  if (!local()) return answered_.size() == static_cast<size_t>(setup_.shards);
  for (uint32_t unit = 0; unit < units_.size(); unit++)
    if (ledger_.is_done(unit) && ledger_.done_by(unit) == trainer &&
        !arrivals_.everywhere(unit, trainer))
      return false;
  return true;
}

Actions TrainingJob::displaced(ShardId shard, StepId step, uint32_t attempt) {
  Actions out;
  if (phase_ == Phase::kComputing && loose()) {
    window_->arrived(shard, step, attempt);
    take_whole_steps(out);
    return out;
  }
  if (phase_ != Phase::kComputing || static_cast<int64_t>(step.value) != state_.steps_done)
    return out;
  arrivals_.arrived(shard, attempt);
  close_round_if_whole(out);
  return out;
}

void TrainingJob::close_round_if_whole(Actions& out) {
  if (!ledger_.done()) return;
  for (uint32_t unit = 0; unit < units_.size(); unit++)
    if (!arrivals_.everywhere(unit, ledger_.done_by(unit))) return;
  const double tokens = static_cast<double>(setup_.plan.tokens_per_step);
  for (size_t at = 0; at < losses_.size(); at += layout_.microbatches()) {
    double loss = 0;
    for (size_t i = at; i < at + layout_.microbatches(); i++) loss += losses_[i];
    loss_ = loss / tokens;
    history_.push_back(loss_);
  }
  learning_rate_ = learning_rate_at(setup_.spec, state_.steps_done + round_steps_ - 1);
  state_.updates += round_steps_;
  phase_ = Phase::kApplying;
  answered_.clear();
  RoundClose order;
  order.step = {static_cast<uint64_t>(state_.steps_done)};
  order.steps = static_cast<uint32_t>(round_steps_);
  for (uint32_t unit = 0; unit < units_.size(); unit++)
    order.counted.push_back(
        {*arrivals_.everywhere(unit, ledger_.done_by(unit)), units_[unit].count});
  commit_round(out);
  out.push_back(CloseRound{std::move(order)});
}

/// One commit for each step, as if its microbatches had been summed: whose displacement they are
/// in.
void TrainingJob::commit_round(Actions& out) const {
  Commit commit;
  commit.repeated = static_cast<uint64_t>(ledger_.repeated());
  for (uint32_t unit = 0; unit < units_.size(); unit++)
    for (const Subtree part : layout_.cover(units_[unit].first, units_[unit].count))
      commit.units.emplace_back(part, ledger_.done_by(unit));
  for (int64_t step = 0; step < round_steps_; step++) {
    commit.step = {static_cast<uint64_t>(state_.steps_done + step)};
    out.push_back(commit);
    commit.repeated = 0;
  }
}

}  // namespace fastserve
