#include "train/local_range.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace fastserve {
namespace {

OuterSettings outer_settings(const TrainSpec& spec) {
  return {std::max(1, spec.consistency.bound), static_cast<float>(spec.outer_learning_rate),
          static_cast<float>(spec.outer_momentum)};
}

}  // namespace

LocalRange::LocalRange(TrainBackend& backend, WeightsGate& gate, WeightReplica& replica,
                       size_t index, const TrainSpec& spec, bool owned)
    : backend_(backend),
      gate_(gate),
      replica_(replica),
      index_(index),
      settings_(outer_settings(spec)),
      owned_(owned),
      shard_(backend, replica.range(index), spec, StepLayout(1), StepId{0}) {}

void LocalRange::refresh() {
  const ParameterShard::Range& range = shard_.range();
  for (size_t i = range.first_tile; i < range.first_tile + range.tiles; i++)
    backend_.refresh(backend_.tiles()[i]);
  moved_ = false;
}

/// Masters alone: whoever goes on packs them.
void LocalRange::leave() {
  if (active_) std::copy(start_.begin(), start_.end(), masters().begin());
  active_ = false;
}

void LocalRange::begin(StepId round, uint32_t microbatches) {
  gate_.enter_write(index_, round);
  leave();
  if (moved_) refresh();
  start_.assign(masters().begin(), masters().end());
  gate_.leave_write(index_);
  shard_.begin(StepLayout(microbatches), round);
  round_ = round;
  active_ = true;
}

std::optional<std::vector<double>> LocalRange::add(StepId step, Subtree piece, GradientHandle sum) {
  if (!active_ || step < round_) return std::nullopt;
  const auto added = shard_.add(step, piece, std::move(sum));
  if (!added.ok() || *added != ParameterShard::Added::kComplete) return std::nullopt;
  return shard_.squares();
}

bool LocalRange::apply(ApplyOrder order) {
  if (!active_ || order.step != shard_.step()) return false;
  order.update = ++updates_;
  gate_.enter_write(index_, round_);
  shard_.apply(order);
  moved_ = true;
  gate_.leave_write(index_);
  return true;
}

bool LocalRange::skip(StepId step) {
  if (!active_ || step != shard_.step()) return false;
  shard_.skip(step);
  return true;
}

bool LocalRange::displace(StepId round, std::span<float> out) {
  if (!active_ || round != round_) return false;
  const auto local = masters();
  FS_CHECK(out.size() <= local.size());
  for (size_t i = 0; i < out.size(); i++) out[i] = start_[i] - local[i];
  leave_for(round_);
  return true;
}

void LocalRange::leave_for(StepId step) {
  gate_.enter_write(index_, step);
  leave();
  gate_.leave_write(index_);
}

void LocalRange::take(StepId step, std::span<const float> weights) {
  if (!replica_.behind(index_, step)) return;
  leave_for(step);
  replica_.take(index_, step, weights);
  moved_ = false;
}

Status LocalRange::take_frame(StepId step, std::span<const std::byte> frame,
                              const WeightCodec& codec) {
  if (!replica_.behind(index_, step)) return {};
  leave_for(step);
  FS_TRY(replica_.take_frame(index_, step, frame, codec));
  moved_ = false;
  return {};
}

void LocalRange::open(StepId step) {
  if (owned_) outer_.emplace(settings_, masters(), std::exchange(momentum_, {}), step);
}

Status LocalRange::close(const RoundClose& order) {
  FS_TRY(outer_->close(order));
  gate_.enter_write(index_, outer_->step());
  active_ = false;
  std::copy(outer_->weights().begin(), outer_->weights().end(), masters().begin());
  refresh();
  gate_.leave_write(index_);
  replica_.applied(index_, outer_->step());
  return {};
}

std::shared_ptr<const ShardState> LocalRange::snapshot() const {
  auto state = std::make_shared<ShardState>();
  state->offset = shard_.range().begin;
  state->weights.assign(outer_->weights().begin(), outer_->weights().end());
  state->m.assign(outer_->momentum().begin(), outer_->momentum().end());
  const auto v = shard_.second_moments();
  state->v.assign(v.begin(), v.end());
  return state;
}

void LocalRange::restore(std::span<const float> momentum, std::span<const float> v,
                         int64_t updates) {
  if (owned_) momentum_.assign(momentum.begin(), momentum.end());
  const std::vector<float> nothing(v.size());
  shard_.restore_range(nothing, v);
  updates_ = updates;
}

}  // namespace fastserve
