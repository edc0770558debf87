#include "actors/parameter_server.h"

namespace fastserve {

using namespace messages;

ParameterServerActor::behavior_type parameter_server(ParameterServerActor::pointer self, ShardId id,
                                                     ParameterServerParts parts,
                                                     CoordinatorActor coordinator) {
  const auto shard = parts.shard;
  // Brings the weights to the next step, and sends them.
  const auto go_on = [=](StepId step, const std::function<void()>& update) {
    const StepId next{step.value + 1};
    parts.turns->take(id.value, [&] {
      parts.gate->enter_write(id.value, next);
      update();
      parts.gate->leave_write(id.value);
      if (parts.publish) parts.publish(next, shard->weights(), nullptr);
    });
    self->send(coordinator, ShardReady{id, step});
  };
  // What a device got wrong must not be taken for an answer.
  const auto answer = [=](const auto& ask) {
    auto message = ask();
    const Status status = shard->status();
    if (status.ok())
      self->send(coordinator, std::move(message));
    else
      self->send(coordinator, ShardFailed{status.error()});
  };
  return {
      [=](PushGradient& push) {
        const auto added = shard->add(push.step, push.subtree, std::move(push.sum));
        if (!added.ok() && !push.peer.empty())
          parts.log.warning("node " + push.peer + ": " + added.error().message() + "; dropped");
        else if (!added.ok())
          self->send(coordinator, ShardFailed{added.error()});
        else if (*added == ParameterShard::Added::kComplete)
          answer([&] { return Gathered{id, push.step, shard->squares()}; });
      },
      [=](const Apply& apply) { go_on(apply.order.step, [&] { shard->apply(apply.order); }); },
      [](const Close&) {},
      [=](const Skip& skip) { go_on(skip.step, [&] { shard->skip(skip.step); }); },
      [=](const CopyState&) { answer([&] { return StateCopied{shard->snapshot()}; }); },
      [=](const CopyWeights&) { answer([&] { return WeightsCopied{shard->weights_snapshot()}; }); },
      [=](const SendWeights& to) {
        if (to.state && parts.send_state)
          parts.send_state(shard->snapshot(), to.peer);
        else if (parts.publish)
          parts.publish(shard->step(), shard->weights(), to.peer.empty() ? nullptr : &to.peer);
      },
  };
}

}  // namespace fastserve
