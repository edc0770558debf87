#include "train/weight_replica.h"

#include <algorithm>

#include "base/check.h"

namespace fastserve {

WeightReplica::WeightReplica(TrainBackend& backend, WeightsGate& gate,
                             std::vector<ParameterShard::Range> ranges)
    : backend_(backend),
      gate_(gate),
      ranges_(std::move(ranges)),
      steps_(ranges_.size()),
      versions_(ranges_.size()) {}

bool WeightReplica::behind(size_t r, StepId step) const {
  std::lock_guard lock(mutex_);
  return !steps_[r] || *steps_[r] < step;
}

bool WeightReplica::holds(size_t r) const {
  std::lock_guard lock(mutex_);
  return steps_[r].has_value();
}

void WeightReplica::refresh(size_t r) {
  const ParameterShard::Range& range = ranges_[r];
  for (size_t i = range.first_tile; i < range.first_tile + range.tiles; i++)
    backend_.refresh(backend_.tiles()[i]);
}

bool WeightReplica::past(size_t r, StepId step) const {
  std::lock_guard lock(mutex_);
  return steps_[r] && *steps_[r] > step;
}

void WeightReplica::take(size_t r, StepId step, std::span<const float> weights) {
  if (!behind(r, step)) return;
  gate_.enter_write(r, step);
  write(r, step, behind(r, step), weights);  // another may have been first
}

bool WeightReplica::restore(size_t r, StepId step, std::span<const float> weights) {
  gate_.enter_write(r, step);
  return write(r, step, !past(r, step), weights);
}

/// Leaves the gate's range.
bool WeightReplica::write(size_t r, StepId step, bool wanted, std::span<const float> weights) {
  const ParameterShard::Range& range = ranges_[r];
  FS_CHECK(weights.size() == range.end - range.begin);
  if (wanted) {
    std::copy(weights.begin(), weights.end(), backend_.masters().data() + range.begin);
    refresh(r);
    applied(r, step);
  }
  gate_.leave_write(r, wanted);
  return wanted;
}

Status WeightReplica::take_frame(size_t r, StepId step, std::span<const std::byte> frame,
                                 const WeightCodec& codec) {
  if (!behind(r, step)) return {};
  // A change of what this node was never sent: the whole, with the change in it, is on its way.
  const bool change =
      codec.format().kind == WeightsBack::Kind::kDelta && frame.size() == codec.encoded_bytes();
  if (change && !holds(r)) return {};
  gate_.enter_write(r, step);
  Status status;
  const bool wanted = behind(r, step);  // another may have been first
  if (wanted)
    status = codec.decode(frame, backend_.masters().subspan(codec.begin(), codec.elements()),
                          versions_[r]);
  if (wanted && status.ok()) {
    refresh(r);
    applied(r, step);
  }
  gate_.leave_write(r, wanted && status.ok());
  return status;
}

void WeightReplica::applied(size_t r, StepId step) {
  std::lock_guard lock(mutex_);
  steps_[r] = step;
}

std::optional<StepId> WeightReplica::newest() const {
  std::lock_guard lock(mutex_);
  return steps_.empty() ? std::nullopt : *std::max_element(steps_.begin(), steps_.end());
}

std::optional<StepId> WeightReplica::whole() const {
  std::lock_guard lock(mutex_);
  const bool same = std::all_of(steps_.begin(), steps_.end(), [&](const auto& step) {
    return step.has_value() && *step == *steps_.front();
  });
  return same && !steps_.empty() ? steps_.front() : std::nullopt;
}

}  // namespace fastserve
