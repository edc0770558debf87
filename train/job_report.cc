// What a job tells of itself, and what it leaves in a checkpoint.
#include "train/job.h"

namespace fastserve {
namespace {

double seconds(Nanoseconds time) { return std::chrono::duration<double>(time).count(); }

}  // namespace

TrainProgress TrainingJob::progress() const {
  TrainProgress report;
  report.step = state_.steps_done;
  report.steps = setup_.spec.steps;
  report.epoch = static_cast<double>(state_.steps_done) * setup_.plan.sequences /
                 static_cast<double>(setup_.windows);
  report.loss = loss_;
  report.learning_rate = learning_rate_;
  report.grad_norm = grad_norm_;
  const double step_time = seconds(step_time_);
  if (step_time > 0)
    report.tokens_per_second = static_cast<double>(setup_.plan.tokens_per_step) / step_time;
  report.eta_seconds = step_time * static_cast<double>(report.steps - report.step);
  report.tokens = state_.steps_done * setup_.plan.tokens_per_step;
  if (state_.early.best_step >= 0) report.best_validation_loss = state_.early.best_loss;
  report.skipped = skipped_;
  report.trainers = static_cast<int>(trainers_.size());
  return report;
}

TrainOutcome TrainingJob::outcome() const {
  TrainOutcome outcome;
  outcome.steps = state_.steps_done;
  outcome.tokens = state_.steps_done * setup_.plan.tokens_per_step;
  outcome.losses = history_;
  if (state_.evaluated_at >= 0) outcome.validation_loss = state_.validation_loss;
  if (state_.early.best_step >= 0) outcome.best_validation_loss = state_.early.best_loss;
  outcome.best_step = state_.early.best_step;
  const double trained =
      static_cast<double>(history_.size()) * static_cast<double>(setup_.plan.tokens_per_step);
  if (train_time_.count() > 0) outcome.tokens_per_second = trained / seconds(train_time_);
  outcome.seconds = seconds(setup_.clock->now() - started_);
  outcome.skipped = skipped_;
  outcome.repeated_units = repeated_ + ledger_.repeated();
  outcome.checkpoint = checkpoint_;
  return outcome;
}

Json JobState::to_json() const {
  Json json = Json::object({{"steps_done", steps_done},
                            {"updates", updates},
                            {"evaluated_at", evaluated_at},
                            {"validation_loss", validation_loss},
                            {"loss_scale", scaler.scale},
                            {"good_steps", scaler.good_steps},
                            {"best_step", early.best_step},
                            {"worse", early.worse}});
  if (early.best_step >= 0) json.set("best_loss", early.best_loss);
  return json;
}

Result<JobState> JobState::from_json(const Json& json, const std::string& where) {
  JobState state;
  FS_ASSIGN(state.steps_done, json.int_or("steps_done", -1));
  FS_ASSIGN(state.updates, json.int_or("updates", 0));
  FS_ASSIGN(state.evaluated_at, json.int_or("evaluated_at", -1));
  FS_ASSIGN(state.validation_loss, json.double_or("validation_loss", 0));
  FS_ASSIGN(state.scaler.scale, json.double_or("loss_scale", LossScaler::kStart));
  FS_ASSIGN(state.scaler.good_steps, json.int_or("good_steps", 0));
  FS_ASSIGN(state.early.best_step, json.int_or("best_step", -1));
  FS_ASSIGN(state.early.best_loss, json.double_or("best_loss", state.early.best_loss));
  FS_ASSIGN(const int64_t worse, json.int_or("worse", 0));
  state.early.worse = static_cast<int>(worse);
  if (state.steps_done >= 0) return state;
  return Error{ErrorCode::kCorrupt, "has no `steps_done`", where, ""};
}

}  // namespace fastserve
