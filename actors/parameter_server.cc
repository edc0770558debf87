#include "actors/parameter_server.h"

namespace fastserve {

using namespace messages;

ParameterServerActor::behavior_type parameter_server(ParameterServerActor::pointer self, ShardId id,
                                                     std::shared_ptr<ParameterShard> shard,
                                                     CoordinatorActor coordinator) {
  return {
      [=](PushGradient& push) {
        const auto added = shard->add(push.step, push.subtree, std::move(push.sum));
        if (!added.ok())
          self->send(coordinator, ShardFailed{added.error()});
        else if (*added == ParameterShard::Added::kComplete)
          self->send(coordinator, Gathered{id, push.step, shard->squares()});
      },
      [=](const Apply& apply) {
        shard->apply(apply.order);
        self->send(coordinator, ShardReady{id, apply.order.step});
      },
      [=](const Skip& skip) {
        shard->skip(skip.step);
        self->send(coordinator, ShardReady{id, skip.step});
      },
      [=](const CopyState&) { self->send(coordinator, StateCopied{shard->snapshot()}); },
  };
}

}  // namespace fastserve
