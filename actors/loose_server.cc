#include "actors/loose_server.h"

#include "actors/range_server.h"

namespace fastserve {

using namespace messages;

namespace {

class LooseServer : public RangeServer<LooseRange> {
 public:
  using RangeServer::RangeServer;

  void push(PushGradient& push) {
    if (!push.peer.empty()) return arrived(push.peer, push.step, push.subtree, push.sum);
    sum_own(push);
  }

  void send(const LocalRounds::Push& order) {
    hand_over(
        order.step, order.run,
        [&](std::span<float> values) {
          return range_.take_gradient(order.step, order.scale, values);
        },
        [&](const GradientHandle& gradient) { arrived("", order.step, order.run, gradient); });
  }

  void close(const RoundClose& order) {
    if (!range_.is_open()) return;
    if (const Status status = range_.close(order); !status.ok())
      return tell(ShardFailed{status.error()});
    room_->publish(index_, range_.met_version(), range_.weights(), nullptr);
    tell(ShardReady{{index_}, order.step});
  }

  void join(const std::string& peer) {
    if (!range_.is_open()) return;
    range_.joined(peer);
    room_->publish(index_, range_.version_for(peer), range_.weights(), &peer);
  }

  void copy_weights() { tell_weights(range_.weights()); }

  void weights_here(const WeightsHere& here) {
    // The coordinator's are named by the step that they begin a segment with.
    take_weights(here, LooseRange::version(here.step));
  }

 private:
  void arrived(const std::string& peer, StepId step, Subtree run, GradientHandle gradient) {
    if (!range_.is_open()) return;
    const auto applied = range_.apply(peer, step, run, std::move(gradient));
    if (!applied.ok()) return dropped(peer, applied.error());
    if (*applied == LooseRange::Applied::kNew) tell(Displaced{{index_}, step, run.first});
    if (*applied == LooseRange::Applied::kLate) return;
    if (peer.empty())
      tell(Tick{});
    else
      room_->publish(index_, range_.version_for(peer), range_.weights(), &peer);
  }
};

}  // namespace

LocalServerActor::behavior_type loose_server(LocalServerActor::pointer self,
                                             std::shared_ptr<PartRoom> room, uint32_t index,
                                             DeputyActor deputy) {
  LooseRange& range = *room->loose[index];
  const auto server = std::make_shared<LooseServer>(self, std::move(room), range, index, deputy);
  return {
      [=](PushGradient& push) { server->push(push); },
      [](const Apply&) {},
      [=](const Close& close) { server->close(close.order); },
      [](const Skip&) {},
      [=](const CopyState&) { server->tell(StateCopied{server->range().snapshot()}); },
      [=](const CopyWeights&) { server->copy_weights(); },
      [=](const SendWeights& to) { server->join(to.peer); },
      [=](const LocalRounds::Begin& begin) {
        server->range().begin(begin.round, begin.microbatches);
      },
      [](const LocalRounds::Apply&) {},
      [](const LocalRounds::Skip&) {},
      [](const LocalRounds::Displace&) {},
      [=](const LocalRounds::Push& order) { server->send(order); },
      [=](const WeightsHere& here) { server->weights_here(here); },
  };
}

}  // namespace fastserve
