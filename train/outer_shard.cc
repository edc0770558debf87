#include "train/outer_shard.h"

#include <fmt/format.h>

#include "base/check.h"

namespace fastserve {
namespace {

OuterOptimiser begun(const OuterSettings& settings, std::span<const float> weights,
                     std::span<const float> momentum) {
  OuterState state{0, {weights.begin(), weights.end()}, {momentum.begin(), momentum.end()}};
  state.momentum.resize(weights.size());
  auto outer = OuterOptimiser::restore(settings, std::move(state));
  FS_CHECK(outer.ok());  // validated with the job's settings
  return std::move(*outer);
}

}  // namespace

OuterShard::OuterShard(const OuterSettings& settings, std::span<const float> weights,
                       std::span<const float> momentum, StepId step)
    : outer_(begun(settings, weights, momentum)), step_(step) {}

Result<OuterShard::Arrival> OuterShard::add(StepId round, uint32_t attempt,
                                            GradientHandle displacement) {
  if (round < step_) return Arrival::kLate;
  const std::string where = fmt::format("displacement {} of step {}", attempt, round.value);
  if (round > step_)
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("came before its round began; the one of step {} is open", step_.value), where,
        ""};
  if (displacement->elements() < outer_.weights().size())
    return Error{ErrorCode::kInvalidArgument, "is too short for the range", where, ""};
  return here_.try_emplace(attempt, std::move(displacement)).second ? Arrival::kNew
                                                                    : Arrival::kRepeated;
}

Status OuterShard::close(const RoundClose& order) {
  const auto broken = [&](std::string what) {
    return Error{ErrorCode::kCorrupt, std::move(what),
                 fmt::format("the round of step {}", order.step.value), ""};
  };
  if (order.step != step_ || order.steps == 0 || order.counted.empty())
    return broken(fmt::format("is closed where that of step {} is open", step_.value));
  uint32_t place = 0;
  for (const RoundClose::Counted& counted : order.counted) {
    const auto at = here_.find(counted.attempt);
    if (at == here_.end() || counted.share == 0)
      return broken(fmt::format("counts displacement {}, which is not here", counted.attempt));
    const std::span<const float> values(at->second->data(), outer_.weights().size());
    const auto added =
        outer_.add(outer_.round(), place++, values, static_cast<float>(counted.share));
    if (!added.ok()) return added.error();
    here_.erase(at);  // so that it cannot count again
  }
  outer_.step();
  here_.clear();
  step_.value += order.steps;
  return {};
}

}  // namespace fastserve
