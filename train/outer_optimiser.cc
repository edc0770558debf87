#include "train/outer_optimiser.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace fastserve {

Status OuterSettings::validate() const {
  const auto wrong = [](const char* field, const std::string& what, const char* hint) {
    return Error{ErrorCode::kInvalidArgument, what, field, hint};
  };
  if (local_steps < 1 || local_steps > 100'000)
    return wrong("local_steps", fmt::format("is {}", local_steps), "give 1 to 100000");
  if (!(learning_rate > 0 && learning_rate <= 10))
    return wrong("outer learning_rate", fmt::format("is {}", learning_rate), "0.7 is usual");
  if (!(momentum >= 0 && momentum < 1))
    return wrong("outer momentum", fmt::format("is {}", momentum), "0.9 is usual, 0 is none");
  return {};
}

OuterOptimiser::OuterOptimiser(const OuterSettings& settings, std::span<const float> weights)
    : OuterOptimiser(
          settings,
          OuterState{0, {weights.begin(), weights.end()}, std::vector<float>(weights.size())}) {}

OuterOptimiser::OuterOptimiser(const OuterSettings& settings, OuterState state)
    : settings_(settings), state_(std::move(state)), sum_(state_.weights.size()) {}

Result<OuterOptimiser> OuterOptimiser::restore(const OuterSettings& settings, OuterState state) {
  FS_TRY(settings.validate());
  if (state.weights.size() != state.momentum.size())
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("holds {} weights and {} values of momentum", state.weights.size(),
                             state.momentum.size()),
                 "the outer optimiser's state", "take another checkpoint"};
  return OuterOptimiser(settings, std::move(state));
}

Result<OuterOptimiser::Added> OuterOptimiser::add(uint64_t round, uint32_t node,
                                                  std::span<const float> displacement,
                                                  float share) {
  FS_CHECK(share > 0);
  if (round < state_.round) return Added::kLate;
  const std::string where = fmt::format("node {}, round {}", node, round);
  if (round > state_.round)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("came before its round began; {} is current", state_.round), where,
                 ""};
  if (displacement.size() != state_.weights.size())
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("holds {} values and not {}", displacement.size(), state_.weights.size()),
        where, ""};
  if (has(node)) return Added::kRepeated;
  for (size_t i = 0; i < displacement.size(); i++)
    if (!std::isfinite(displacement[i]))
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("moved element {} of the slice by {}", i, displacement[i]), where,
                   "this node's local steps diverged: leave it out, or lower the learning rate"};
  arrived_++;
  if (node != summed_) {
    waiting_.emplace(node, Displacement{{displacement.begin(), displacement.end()}, share});
    return Added::kNew;
  }
  sum_up(displacement, share);
  summed_++;
  for (auto next = waiting_.find(summed_); next != waiting_.end(); next = waiting_.find(summed_)) {
    sum_up(next->second.values, next->second.share);
    waiting_.erase(next);
    summed_++;
  }
  return Added::kNew;
}

bool OuterOptimiser::has(uint32_t node) const { return node < summed_ || waiting_.contains(node); }

void OuterOptimiser::sum_up(std::span<const float> displacement, float share) {
  for (size_t i = 0; i < sum_.size(); i++) sum_[i] += share * displacement[i];
  shares_ += share;
}

void OuterOptimiser::step() {
  FS_CHECK(arrived_ > 0);
  for (const auto& [node, waiting] : waiting_) sum_up(waiting.values, waiting.share);
  const float share = 1.0f / shares_;
  for (size_t i = 0; i < sum_.size(); i++) {
    const float gradient = sum_[i] * share;
    float& momentum = state_.momentum[i];
    momentum = settings_.momentum * momentum + gradient;
    state_.weights[i] -= settings_.learning_rate * (gradient + settings_.momentum * momentum);
  }
  std::fill(sum_.begin(), sum_.end(), 0.0f);
  waiting_.clear();
  summed_ = 0;
  arrived_ = 0;
  shares_ = 0;
  state_.round++;
}

size_t OuterOptimiser::bytes() const {
  return (3 + waiting_.size()) * state_.weights.size() * sizeof(float);
}

}  // namespace fastserve
