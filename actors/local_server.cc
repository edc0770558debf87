#include "actors/local_server.h"

#include "actors/range_server.h"

namespace fastserve {

using namespace messages;

namespace {

class LocalServer : public RangeServer<LocalRange> {
 public:
  using RangeServer::RangeServer;

  void push(PushGradient& push) {
    if (!push.peer.empty()) return arrived(push.step, push.subtree.first, push.sum, push.peer);
    sum_own(push);
  }

  void displace(const LocalRounds::Displace& order) {
    hand_over(
        order.round, {order.attempt, order.share},
        [&](std::span<float> values) { return range_.displace(order.round, values); },
        [&](const GradientHandle& displacement) {
          arrived(order.round, order.attempt, displacement, room_->node->name);
        });
  }

  void close(const RoundClose& order) {
    if (!range_.is_open()) return;
    if (const Status status = range_.close(order); !status.ok())
      return tell(ShardFailed{status.error()});
    publish(nullptr);
    tell(ShardReady{{index_}, order.step});
  }

  void publish(const std::string* only) {
    if (range_.is_open())
      room_->publish(index_, range_.outer().step(), range_.outer().weights(), only);
  }

  void copy() {
    if (range_.is_open()) tell(StateCopied{range_.snapshot()});
  }

  void copy_weights() {
    if (range_.is_open()) tell_weights(range_.outer().weights());
  }

  void weights_here(const WeightsHere& here) { take_weights(here, here.step); }

 private:
  void arrived(StepId round, uint32_t attempt, GradientHandle displacement,
               const std::string& peer) {
    if (!range_.is_open()) return;
    const auto added = range_.outer().add(round, attempt, std::move(displacement));
    if (!added.ok())
      dropped(peer, added.error());
    else if (*added == OuterShard::Arrival::kNew)
      tell(Displaced{{index_}, round, attempt});
  }
};

}  // namespace

LocalServerActor::behavior_type local_server(LocalServerActor::pointer self,
                                             std::shared_ptr<PartRoom> room, uint32_t index,
                                             DeputyActor deputy) {
  LocalRange& range = *room->local[index];
  const auto server = std::make_shared<LocalServer>(self, std::move(room), range, index, deputy);
  return {
      [=](PushGradient& push) { server->push(push); },
      [](const Apply&) {},
      [=](const Close& close) { server->close(close.order); },
      [](const Skip&) {},
      [=](const CopyState&) { server->copy(); },
      [=](const CopyWeights&) { server->copy_weights(); },
      [=](const SendWeights& to) { server->publish(&to.peer); },
      [=](const LocalRounds::Begin& begin) {
        server->range().begin(begin.round, begin.microbatches);
      },
      [=](const LocalRounds::Apply& apply) {
        if (server->range().apply(apply.order)) server->tell(LocalApplied{index, apply.order.step});
      },
      [=](const LocalRounds::Skip& skip) {
        if (server->range().skip(skip.step)) server->tell(LocalApplied{index, skip.step});
      },
      [=](const LocalRounds::Displace& order) { server->displace(order); },
      [](const LocalRounds::Push&) {},
      [=](const WeightsHere& here) { server->weights_here(here); },
  };
}

}  // namespace fastserve
