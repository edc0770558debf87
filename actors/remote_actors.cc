#include "actors/remote_actors.h"

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

ParameterServerActor::behavior_type remote_shard(ParameterServerActor::pointer self, uint32_t shard,
                                                 PartActor part) {
  return {
      [](const PushGradient&) {},
      [=](const Apply& apply) {
        self->send(part,
                   ApplyShard{shard, apply.order.step.value,
                              std::bit_cast<uint64_t>(apply.order.learning_rate),
                              std::bit_cast<uint64_t>(apply.order.grad_scale), apply.order.update});
      },
      [=](const Close& close) {
        CloseShard order{shard, close.order.step.value, close.order.steps, {}, {}};
        for (const RoundClose::Counted& counted : close.order.counted) {
          order.attempts.push_back(counted.attempt);
          order.shares.push_back(counted.share);
        }
        self->send(part, std::move(order));
      },
      [=](const Skip& skip) {
        self->send(part, SkipShard{shard, skip.step.value});
      },
      [=](const CopyState& copy) {
        self->send(part, CopyShard{shard, CopyShard::kState, static_cast<uint64_t>(copy.step)});
      },
      [=](const CopyWeights& copy) {
        using Of = CopyWeights::Of;
        const auto what = copy.of == Of::kBest    ? CopyShard::kBest
                          : copy.of == Of::kFinal ? CopyShard::kFinal
                                                  : CopyShard::kFinalBest;
        self->send(part, CopyShard{shard, what, static_cast<uint64_t>(copy.step)});
      },
      [](const SendWeights&) {},
  };
}

}  // namespace fastserve
