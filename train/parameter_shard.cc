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
                               StepLayout layout, StepId first_step,
                               std::unique_ptr<DeviceBuffer> moments)
    : backend_(backend),
      range_(range),
      tiles_(std::span(backend.tiles()).subspan(range.first_tile, range.tiles)),
      layout_(layout),
      tree_(layout),
      fetched_(
          [&backend, range] { return backend.allocate((range.end - range.begin) * sizeof(float)); },
          range.begin, backend.index()),
      step_(first_step),
      own_moments_(moments != nullptr ? 0 : 2 * (range.end - range.begin)),
      device_moments_(std::move(moments)) {
  FS_CHECK(backend.host_memory() || device_moments_ != nullptr);
  moments_ = device_moments_ != nullptr ? static_cast<float*>(device_moments_->data())
                                        : own_moments_.data();
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
  const bool part = backend_.reduces() ? subtree.count > 0 && layout_.root().covers(subtree)
                                       : layout_.is_node(subtree);
  if (!part || !sum->covers(range_.begin, range_.end))
    return Error{ErrorCode::kInvalidArgument, "a gradient is no part of the step", where, ""};
  if (tree_.add(subtree, std::move(sum)) == GradientTree::Added::kRepeated) {
    dropped_++;
    return Added::kRepeated;
  }
  if (!tree_.complete()) return Added::kMore;
  // Not before: until then the other members have passes to go on with.
  if (backend_.reduces())
    FS_TRY(reduce_members());
  else if (!tree_.all_of(backend_.index()))
    FS_TRY(fetch_others());
  return Added::kComplete;
}

Status ParameterShard::fetch_others() {
  const size_t piece = std::min(elements(), kPiece);
  const size_t floats = scratch_floats(elements(), layout_.microbatches());
  if (scratch_ == nullptr || scratch_->bytes() < floats * sizeof(float)) {
    FS_ASSIGN(scratch_, backend_.allocate(floats * sizeof(float)));
  }
  GradientHandle result = tree_.leftmost();
  if (result->member() != backend_.index()) {
    FS_ASSIGN(result, fetched_.take());
  }
  const auto fetch = [this](const GradientBuffer& buffer, size_t from, size_t n,
                            float* room) -> const float* {
    if (buffer.member() == backend_.index()) return buffer.at(from);
    backend_.copy_from(buffer.member(), room, buffer.at(from), n);
    return room;
  };
  tree_.join_into(std::move(result), range_.begin, elements(), piece,
                  static_cast<float*>(scratch_->data()), fetch, backend_.ops());
  return {};
}

Status ParameterShard::reduce_members() {
  std::vector<const float*> parts;
  GradientHandle result;
  for (int i = 0; i < backend_.members(); i++) {
    TrainBackend& member = backend_.member(i);
    const GradientHandle own = tree_.sum_of(i, range_.begin, elements(), member.ops());
    if (i == backend_.index()) result = own;
    auto& zeros = zeros_[i];
    if (own == nullptr && zeros == nullptr) {  // its trainers are lost
      FS_ASSIGN(zeros, member.allocate(elements() * sizeof(float)));
    }
    parts.push_back(own != nullptr ? own->at(range_.begin) : static_cast<float*>(zeros->data()));
  }
  if (result == nullptr) {
    FS_ASSIGN(result, fetched_.take());
  }
  backend_.reduce_from(parts, result->at(range_.begin), elements());
  tree_.become(std::move(result));
  return {};
}

std::vector<double> ParameterShard::squares() {
  std::vector<double> squares(tiles_.size());
  FS_CHECK(sums_.empty());
  if (backend_.host_memory()) {
    for (size_t i = 0; i < tiles_.size(); i++) {  // what was joined is still in the cache
      sums_.push_back(tree_.join(tiles_[i].offset, tiles_[i].size, backend_.ops()));
      squares[i] = backend_.ops().sum_squares(sums_.back(), tiles_[i].size);
    }
  } else {
    const float* const whole = tree_.join_in_place(range_.begin, elements(), backend_.ops());
    std::vector<FloatRun> runs;
    for (const ParameterTile& tile : tiles_) {
      sums_.push_back(whole + (tile.offset - range_.begin));
      runs.push_back({sums_.back(), tile.size});
    }
    backend_.ops().sums_of_squares(runs, squares);
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
    // Times the learning rate, which goes with the root of the share, it goes with the share.
    op.weight_decay *= static_cast<float>(std::sqrt(order.share));
  }
  float* const masters = backend_.masters().data();
  if (backend_.host_memory()) {
    for (size_t i = 0; i < tiles_.size(); i++) {
      update(op, tiles_[i], sums_[i], masters);
      backend_.refresh(tiles_[i]);
    }
    return next_step();
  }
  for (size_t i = 0; i < tiles_.size();) {
    ParameterTile run = tiles_[i];
    const float* const sum = sums_[i];
    for (i++; i < tiles_.size() && tiles_[i].decay == run.decay &&
              tiles_[i].offset == run.offset + run.size;
         i++)
      run.size += tiles_[i].size;
    update(op, run, sum, masters);
  }
  backend_.refresh_run(tiles_);
  next_step();
}

void ParameterShard::update(AdamW op, const ParameterTile& tile, const float* sum, float* masters) {
  const size_t at = tile.offset - range_.begin;
  op.param = masters + tile.offset;
  op.m = m() + at;
  op.v = v() + at;
  op.grad = sum;
  op.n = tile.size;
  if (!tile.decay) op.weight_decay = 0;
  backend_.ops().adamw(op);
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
  auto state = weights_snapshot();
  for (auto [to, from] : {std::pair(&state->m, m()), std::pair(&state->v, v())}) {
    to->resize(elements());
    backend_.copy_out(*to, from);
  }
  return state;
}

std::shared_ptr<ShardState> ParameterShard::weights_snapshot() const {
  auto state = std::make_shared<ShardState>();
  state->offset = range_.begin;
  state->step = step_;
  state->weights.resize(elements());
  backend_.copy_out(state->weights, backend_.masters().data() + range_.begin);
  return state;
}

void ParameterShard::restore(std::span<const float> m, std::span<const float> v) {
  FS_CHECK(m.size() == backend_.elements() && v.size() == m.size());
  restore_range(m.subspan(range_.begin, elements()), v.subspan(range_.begin, elements()));
}

void ParameterShard::restore_range(std::span<const float> m, std::span<const float> v) {
  FS_CHECK(m.size() == elements() && v.size() == elements());
  backend_.copy_in(this->m(), m);
  backend_.copy_in(this->v(), v);
}

}  // namespace fastserve
