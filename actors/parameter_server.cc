#include "actors/parameter_server.h"

namespace fastserve {

using namespace messages;

ParameterServerActor::behavior_type parameter_server(ParameterServerActor::pointer self, ShardId id,
                                                     ParameterServerParts parts,
                                                     CoordinatorActor coordinator) {
  const auto shard = parts.shard;
  const auto ready = [=](StepId step) {
    if (parts.publish) parts.publish({step.value + 1}, shard->weights(), nullptr);
    self->send(coordinator, ShardReady{id, step});
  };
  return {
      [=](PushGradient& push) {
        const auto added = shard->add(push.step, push.subtree, std::move(push.sum));
        if (!added.ok() && !push.peer.empty())
          parts.log.warning("node " + push.peer + ": " + added.error().message() + "; dropped");
        else if (!added.ok())
          self->send(coordinator, ShardFailed{added.error()});
        else if (*added == ParameterShard::Added::kComplete)
          self->send(coordinator, Gathered{id, push.step, shard->squares()});
      },
      [=](const Apply& apply) {
        parts.gate->enter_write({apply.order.step.value + 1});
        shard->apply(apply.order);
        parts.gate->leave_write();
        ready(apply.order.step);
      },
      [](const Close&) {},
      [=](const Skip& skip) {
        shard->skip(skip.step);
        ready(skip.step);
      },
      [=](const CopyState&) { self->send(coordinator, StateCopied{shard->snapshot()}); },
      [=](const CopyWeights&) {
        auto part = std::make_shared<ShardState>();
        part->offset = shard->range().begin;
        part->weights.assign(shard->weights().begin(), shard->weights().end());
        self->send(coordinator, WeightsCopied{std::move(part)});
      },
      [=](const SendWeights& to) {
        if (parts.publish) parts.publish(shard->step(), shard->weights(), &to.peer);
      },
  };
}

}  // namespace fastserve
