#include "train/weight_replica.h"

#include <algorithm>

#include "base/check.h"

namespace fastserve {

WeightReplica::WeightReplica(TrainBackend& backend, WeightsGate& gate,
                             std::vector<ParameterShard::Range> ranges)
    : backend_(backend), gate_(gate), ranges_(std::move(ranges)), steps_(ranges_.size()) {}

void WeightReplica::take(size_t r, StepId step, std::span<const float> weights) {
  const ParameterShard::Range& range = ranges_[r];
  FS_CHECK(weights.size() == range.end - range.begin);
  {
    std::lock_guard lock(mutex_);
    if (steps_[r] && *steps_[r] >= step) return;
  }
  gate_.enter_write(step);
  std::copy(weights.begin(), weights.end(), backend_.masters().data() + range.begin);
  for (size_t i = range.first_tile; i < range.first_tile + range.tiles; i++)
    backend_.refresh(backend_.tiles()[i]);
  gate_.leave_write();
  applied(r, step);
}

void WeightReplica::applied(size_t r, StepId step) {
  std::lock_guard lock(mutex_);
  steps_[r] = step;
}

std::optional<StepId> WeightReplica::whole() const {
  std::lock_guard lock(mutex_);
  const bool same = std::all_of(steps_.begin(), steps_.end(), [&](const auto& step) {
    return step.has_value() && *step == *steps_.front();
  });
  return same && !steps_.empty() ? steps_.front() : std::nullopt;
}

}  // namespace fastserve
