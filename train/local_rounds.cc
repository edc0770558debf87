#include "train/local_rounds.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "train/loose_range.h"
#include "train/schedule.h"

namespace fastserve {

LocalRounds::Orders LocalRounds::give(WorkItem unit) {
  Orders out;
  if (unit.attempt <= last_attempt_) return out;  // told twice
  last_attempt_ = unit.attempt;
  waiting_.push_back(std::move(unit));
  begin_next(out);
  return out;
}

LocalRounds::Orders LocalRounds::weights_ready(StepId step) {
  Orders out;
  if (ready_ != step) {
    ready_ = step;
    fresh_ = true;
    const bool loose = spec_.consistency.loose();
    const bool sending = unit_ && phase_ == Phase::kDisplacing;
    const StepId oldest = loose ? LooseRange::segment_of(step) : step;
    // What comes back for a gradient may be here before the last range says that it has gone.
    if (unit_ && !(loose && sending)) {
      work_.forget(turn_);
      if (loose)
        waiting_.insert(waiting_.begin(), std::move(*unit_));  // it may have come too early
      unit_.reset();
    }
    std::erase_if(waiting_, [&](const WorkItem& unit) { return unit.step < oldest; });
    if (!loose || LooseRange::met(step)) work_.weights_ready(oldest);
  }
  begin_next(out);
  return out;
}

void LocalRounds::begin_next(Orders& out) {
  const bool loose = spec_.consistency.loose();
  if (unit_ || !ready_ || (loose && !fresh_)) return;
  const auto next = std::find_if(waiting_.begin(), waiting_.end(), [&](const WorkItem& unit) {
    return loose || unit.step == *ready_;
  });
  if (next == waiting_.end()) return;
  unit_ = std::move(*next);
  waiting_.erase(next);
  done_ = 0;
  fresh_ = false;
  losses_.clear();
  out.push_back(Begin{unit_->step, unit_->subtree.count});
  begin_step();
}

void LocalRounds::begin_step() {
  phase_ = Phase::kComputing;
  losses_here_ = false;
  squares_.assign(ranges_.size(), std::nullopt);
  WorkItem step = *unit_;
  step.round = ++turn_;
  step.unit = 0;
  step.step = at();
  step.weights = spec_.consistency.loose() ? *ready_ : unit_->step;
  step.whole = step.subtree;
  if (spec_.precision == Precision::kFloat16) step.scale *= static_cast<float>(scaler_.scale);
  work_.weights_ready(step.step);
  work_.give(std::move(step));
}

LocalRounds::Orders LocalRounds::computed(const NodeWork::UnitDone& step) {
  Orders out;
  if (!unit_ || step.round != turn_ || phase_ != Phase::kComputing || losses_here_) return out;
  losses_.insert(losses_.end(), step.losses.begin(), step.losses.end());
  losses_here_ = true;
  close_step_if_whole(out);
  return out;
}

LocalRounds::Orders LocalRounds::gathered(uint32_t range, StepId step,
                                          std::vector<double> squares) {
  Orders out;
  if (!unit_ || step != at() || phase_ != Phase::kComputing) return out;
  squares_[range] = std::move(squares);
  close_step_if_whole(out);
  return out;
}

void LocalRounds::close_step_if_whole(Orders& out) {
  const auto here = [](const auto& squares) { return squares.has_value(); };
  if (!losses_here_ || !std::all_of(squares_.begin(), squares_.end(), here)) return;
  double total = 0;
  for (const auto& of_range : squares_)
    for (const double square : *of_range) total += square;
  const bool half = spec_.precision == Precision::kFloat16;
  const double loss_scale = half ? scaler_.scale : 1;
  const double norm = std::sqrt(total) / loss_scale;
  phase_ = Phase::kApplying;
  answered_.assign(ranges_.size(), false);
  if (!std::isfinite(norm)) {
    if (half && scaler_.overflow()) {
      out.push_back(Skip{at()});
      return;
    }
    // The job ends where it reads this.
    losses_.resize(size_t{unit_->subtree.count} * unit_->steps,
                   std::numeric_limits<double>::quiet_NaN());
    losses_.back() = std::numeric_limits<double>::quiet_NaN();
    return report(out);
  }
  if (half) scaler_.good();
  ApplyOrder order;
  order.step = at();
  order.learning_rate = learning_rate_at(spec_, static_cast<int64_t>(order.step.value));
  const double clip = spec_.clip_norm;
  order.grad_scale = (clip > 0 ? std::min(1.0, clip / (norm + 1e-6)) : 1.0) / loss_scale;
  if (spec_.consistency.loose()) {
    phase_ = Phase::kDisplacing;
    out.push_back(Push{at(), unit_->subtree, static_cast<float>(order.grad_scale)});
    return;
  }
  out.push_back(Apply{order});
}

bool LocalRounds::answered(uint32_t range) {
  answered_[range] = true;
  return std::all_of(answered_.begin(), answered_.end(), [](bool yes) { return yes; });
}

LocalRounds::Orders LocalRounds::applied(uint32_t range, StepId step) {
  Orders out;
  if (!unit_ || step != at() || phase_ != Phase::kApplying || !answered(range)) return out;
  if (++done_ < unit_->steps) {
    begin_step();
    return out;
  }
  phase_ = Phase::kDisplacing;
  answered_.assign(ranges_.size(), false);
  out.push_back(Displace{unit_->step, unit_->attempt, unit_->subtree.count});
  return out;
}

LocalRounds::Orders LocalRounds::displaced(uint32_t range, StepId round) {
  Orders out;
  if (!unit_ || round != unit_->step || phase_ != Phase::kDisplacing || !answered(range))
    return out;
  report(out);
  begin_next(out);
  return out;
}

void LocalRounds::report(Orders& out) {
  out.push_back(Done{{WorkItem::Kind::kGradient, unit_->round, unit_->unit, std::move(losses_)}});
  losses_ = {};
  unit_.reset();
}

}  // namespace fastserve
