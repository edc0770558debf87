#include "train/parameter_shard.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace fastserve {

std::vector<ParameterShard::Range> ParameterShard::ranges(const std::vector<ParameterTile>& tiles,
                                                          size_t elements, int shards) {
  FS_CHECK(shards >= 1 && !tiles.empty());
  size_t total = 0;
  for (const ParameterTile& tile : tiles) total += tile.size;
  std::vector<Range> ranges;
  size_t done = 0, first = 0;
  for (size_t i = 0; i < tiles.size(); i++) {
    done += tiles[i].size;
    const bool last = i + 1 == tiles.size();
    if (!last && done * static_cast<size_t>(shards) < total * (ranges.size() + 1)) continue;
    const size_t begin = ranges.empty() ? 0 : ranges.back().end;
    ranges.push_back({first, i + 1 - first, begin, last ? elements : tiles[i + 1].offset});
    first = i + 1;
  }
  return ranges;
}

std::vector<size_t> ParameterShard::begins(const std::vector<Range>& ranges) {
  std::vector<size_t> begins;
  for (const Range& range : ranges) begins.push_back(range.begin);
  return begins;
}

ParameterShard::ParameterShard(TrainBackend& backend, Range range, const TrainSpec& spec,
                               StepLayout layout, StepId first_step)
    : backend_(backend),
      range_(range),
      tiles_(std::span(backend.tiles()).subspan(range.first_tile, range.tiles)),
      layout_(layout),
      tree_(layout),
      step_(first_step),
      m_(range.end - range.begin),
      v_(range.end - range.begin) {
  hyper_.beta1 = static_cast<float>(spec.beta1);
  hyper_.beta2 = static_cast<float>(spec.beta2);
  hyper_.epsilon = static_cast<float>(spec.epsilon);
  hyper_.weight_decay = static_cast<float>(spec.weight_decay);
}

Result<ParameterShard::Added> ParameterShard::add(StepId step, Subtree subtree,
                                                  GradientHandle sum) {
  if (step < step_) {
    dropped_++;
    return Added::kLate;
  }
  const std::string where =
      fmt::format("step {}, microbatches {}..{}", step.value, subtree.first, subtree.end());
  if (step > step_)
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("a gradient came before its step began; step {} is current", step_.value),
        where, ""};
  if (!layout_.is_node(subtree) || !sum->covers(range_.begin, range_.end))
    return Error{ErrorCode::kInvalidArgument, "a gradient is no part of the step", where, ""};
  if (tree_.add(subtree, std::move(sum)) == GradientTree::Added::kRepeated) {
    dropped_++;
    return Added::kRepeated;
  }
  return tree_.complete() ? Added::kComplete : Added::kMore;
}

std::vector<double> ParameterShard::squares() {
  std::vector<double> squares;
  squares.reserve(tiles_.size());
  FS_CHECK(sums_.empty());
  for (const ParameterTile& tile : tiles_) {
    sums_.push_back(tree_.join(tile.offset, tile.size, backend_.ops()));
    squares.push_back(backend_.ops().sum_squares(sums_.back(), tile.size));
  }
  tree_.release_parts();
  return squares;
}

void ParameterShard::apply(const ApplyOrder& order) {
  FS_CHECK(order.step == step_ && sums_.size() == tiles_.size());
  AdamW op = hyper_;
  op.learning_rate = static_cast<float>(order.learning_rate);
  op.grad_scale = static_cast<float>(order.grad_scale);
  op.step = order.update;
  if (order.share != 1) {
    op.beta1 = static_cast<float>(std::pow(hyper_.beta1, order.share));
    op.beta2 = static_cast<float>(std::pow(hyper_.beta2, order.share));
  }
  // Times the learning rate, which goes with the root of the share, it goes with the share.
  const float weight_decay = order.share == 1
                                 ? hyper_.weight_decay
                                 : hyper_.weight_decay * static_cast<float>(std::sqrt(order.share));
  float* masters = backend_.masters().data();
  for (size_t i = 0; i < tiles_.size(); i++) {
    const ParameterTile& tile = tiles_[i];
    const size_t at = tile.offset - range_.begin;
    op.param = masters + tile.offset;
    op.m = m_.data() + at;
    op.v = v_.data() + at;
    op.grad = sums_[i];
    op.n = tile.size;
    op.weight_decay = tile.decay ? weight_decay : 0.0f;
    backend_.ops().adamw(op);
    backend_.refresh(tile);
  }
  next_step();
}

void ParameterShard::skip(StepId step) {
  FS_CHECK(step == step_);
  next_step();
}

void ParameterShard::begin(StepLayout layout, StepId step) {
  sums_.clear();
  layout_ = layout;
  tree_ = GradientTree(layout);
  step_ = step;
}

void ParameterShard::next_step() {
  tree_.clear();
  sums_.clear();
  step_.value++;
}

std::shared_ptr<const ShardState> ParameterShard::snapshot() const {
  auto state = std::make_shared<ShardState>();
  const auto masters = weights();
  state->offset = range_.begin;
  state->weights.assign(masters.begin(), masters.end());
  state->m = m_;
  state->v = v_;
  return state;
}

void ParameterShard::restore(std::span<const float> m, std::span<const float> v) {
  FS_CHECK(m.size() == backend_.elements() && v.size() == m.size());
  const size_t n = range_.end - range_.begin;
  restore_range(m.subspan(range_.begin, n), v.subspan(range_.begin, n));
}

void ParameterShard::restore_range(std::span<const float> m, std::span<const float> v) {
  FS_CHECK(m.size() == m_.size() && v.size() == v_.size());
  std::copy(m.begin(), m.end(), m_.begin());
  std::copy(v.begin(), v.end(), v_.begin());
}

}  // namespace fastserve
