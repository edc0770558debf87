#include "train/loose_range.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "train/schedule.h"

namespace fastserve {

LooseRange::LooseRange(TrainBackend& backend, WeightsGate& gate, WeightReplica& replica,
                       size_t index, const TrainSpec& spec, uint32_t microbatches, bool owned)
    : backend_(backend),
      gate_(gate),
      replica_(replica),
      index_(index),
      spec_(spec),
      microbatches_(microbatches),
      owned_(owned),
      shard_(backend, replica.range(index), spec, StepLayout(1), StepId{0}) {}

void LooseRange::begin(StepId step, uint32_t microbatches) {
  tree_ = GradientTree(StepLayout(microbatches));
  step_ = step;
  gathering_ = true;
}

std::optional<std::vector<double>> LooseRange::add(StepId step, Subtree piece, GradientHandle sum) {
  const bool whole_before = tree_.complete();
  if (!gathering_ || step != step_ || whole_before) return std::nullopt;
  tree_.add(piece, std::move(sum));
  if (!tree_.complete()) return std::nullopt;
  std::vector<double> squares;
  for (size_t i = range().first_tile; i < range().first_tile + range().tiles; i++) {
    const ParameterTile& tile = backend_.tiles()[i];
    const float* joined = tree_.join(tile.offset, tile.size, backend_.ops());
    squares.push_back(backend_.ops().sum_squares(joined, tile.size));
  }
  return squares;
}

bool LooseRange::take_gradient(StepId step, float scale, std::span<float> out) {
  if (!gathering_ || step != step_ || !tree_.complete()) return false;
  std::fill(out.begin(), out.end(), 0.0f);
  for (size_t i = range().first_tile; i < range().first_tile + range().tiles; i++) {
    const ParameterTile& tile = backend_.tiles()[i];
    const float* from = tree_.whole()->at(tile.offset);
    float* to = out.data() + (tile.offset - range().begin);
    for (size_t k = 0; k < tile.size; k++) to[k] = scale * from[k];
  }
  tree_.clear();
  gathering_ = false;
  return true;
}

void LooseRange::take(StepId version, std::span<const float> weights) {
  replica_.take(index_, version, weights);
}

Status LooseRange::take_frame(StepId version, std::span<const std::byte> frame,
                              const WeightCodec& codec) {
  return replica_.take_frame(index_, version, frame, codec);
}

Result<LooseRange::Applied> LooseRange::apply(const std::string& node, StepId step, Subtree run,
                                              GradientHandle gradient) {
  if (step < segment_) return Applied::kLate;
  const bool known = run.count >= 1 && run.count <= microbatches_ &&
                     run.first <= microbatches_ - run.count &&
                     step.value < static_cast<uint64_t>(std::max<int64_t>(1, spec_.steps)) &&
                     gradient->covers(range().begin, range().end);
  if (!known)
    return Error{ErrorCode::kInvalidArgument, "a gradient is no part of the job",
                 fmt::format("step {}, microbatches {}..{}", step.value, run.first, run.end()), ""};
  sent_[node].emplace(step, run.first);
  const bool fresh = applied_.emplace(step, run.first).second;
  if (fresh) {
    // A mean over its run is as noisy as its run is short: AdamW's step goes with the root of the
    // batch then, and its memory with the batch (Malladi et al. 2022).
    const double share = static_cast<double>(run.count) / microbatches_;
    shard_.begin(StepLayout(1), step);
    const auto added = shard_.add(step, {0, 1}, std::move(gradient));
    if (!added.ok()) return added.error();
    [[maybe_unused]] const auto squares = shard_.squares();
    ApplyOrder order;
    order.step = step;
    order.learning_rate =
        learning_rate_at(spec_, static_cast<int64_t>(step.value)) * std::sqrt(share);
    order.update = ++updates_;
    order.share = share;
    gate_.enter_write(index_, {0});
    shard_.apply(order);
    gate_.leave_write(index_);
  }
  if (replica_.behind(index_, version_for(node)) && node.empty())
    replica_.applied(index_, version_for(node));
  return fresh ? Applied::kNew : Applied::kRepeated;
}

StepId LooseRange::version_for(const std::string& node) const {
  const auto it = sent_.find(node);
  return version(segment_, it == sent_.end() ? 0 : it->second.size());
}

Status LooseRange::close(const RoundClose& order) {
  if (order.step != segment_ || order.steps == 0)
    return Error{ErrorCode::kCorrupt,
                 fmt::format("ends where the one of step {} is open", segment_.value),
                 fmt::format("the segment of step {}", order.step.value), ""};
  segment_.value += order.steps;
  applied_.clear();
  sent_.clear();
  gate_.enter_write(index_, met_version());
  gate_.leave_write(index_);
  replica_.applied(index_, met_version());
  return {};
}

void LooseRange::restore(std::span<const float> m, std::span<const float> v, int64_t updates) {
  shard_.restore_range(m, v);
  updates_ = updates;
}

}  // namespace fastserve
