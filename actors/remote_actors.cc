#include "actors/remote_actors.h"

#include <optional>

namespace fastserve {

using namespace messages;
using namespace wire_messages;

TrainerActor::behavior_type remote_trainer(TrainerActor::pointer self, PartActor part) {
  return {[=](const Work& work) {
    const WorkItem& item = work.item;
    self->send(part, GiveUnit{static_cast<uint8_t>(item.kind), item.round, item.unit,
                              item.step.value, item.subtree.first, item.subtree.count,
                              std::bit_cast<uint32_t>(item.scale), item.steps, item.attempt});
  }};
}

RemoteShardActor::behavior_type remote_shard(RemoteShardActor::pointer self, uint32_t shard,
                                             std::vector<PartActor> parts) {
  struct State {
    std::vector<PartActor> parts;
    std::optional<CopyShard> asked;  // for its state, since the last step
  };
  const auto state = std::make_shared<State>(State{std::move(parts), {}});
  const auto to_all = [=](const auto& order) {
    for (const PartActor& part : state->parts) self->send(part, order);
  };
  const auto ask = [=] {
    if (state->asked && !state->parts.empty()) self->send(state->parts.front(), *state->asked);
  };
  return {
      [](const PushGradient&) {},
      [=](const Apply& apply) {
        state->asked.reset();
        to_all(ApplyShard{shard, apply.order.step.value,
                          std::bit_cast<uint64_t>(apply.order.learning_rate),
                          std::bit_cast<uint64_t>(apply.order.grad_scale), apply.order.update});
      },
      [=](const Close& close) {
        CloseShard order{shard, close.order.step.value, close.order.steps, {}, {}};
        for (const RoundClose::Counted& counted : close.order.counted) {
          order.attempts.push_back(counted.attempt);
          order.shares.push_back(counted.share);
        }
        to_all(order);
      },
      [=](const Skip& skip) {
        state->asked.reset();
        to_all(SkipShard{shard, skip.step.value});
      },
      [=](const CopyState& copy) {
        state->asked = CopyShard{shard, CopyShard::kState, static_cast<uint64_t>(copy.step)};
        ask();
      },
      [=](const CopyWeights& copy) {
        using Of = CopyWeights::Of;
        const auto what = copy.of == Of::kBest    ? CopyShard::kBest
                          : copy.of == Of::kFinal ? CopyShard::kFinal
                                                  : CopyShard::kFinalBest;
        to_all(CopyShard{shard, what, static_cast<uint64_t>(copy.step)});
      },
      [](const SendWeights&) {},
      [=](const PartsNow& now) {
        const bool moved = !state->parts.empty() && !now.parts.empty() &&
                           state->parts.front() != now.parts.front();
        state->parts = now.parts;
        if (moved) ask();
      },
  };
}

}  // namespace fastserve
