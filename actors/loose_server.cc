#include "actors/loose_server.h"

#include "actors/slice_sender.h"

namespace fastserve {

using namespace messages;

namespace {

class LooseServer {
 public:
  LooseServer(LocalServerActor::pointer self, std::shared_ptr<PartRoom> room, uint32_t index,
              DeputyActor deputy)
      : self_(self),
        room_(std::move(room)),
        range_(*room_->loose[index]),
        index_(index),
        deputy_(std::move(deputy)) {}

  LooseRange& range() { return range_; }
  template <class Message>
  void tell(Message message) {
    self_->send(deputy_, std::move(message));
  }

  void push(PushGradient& push) {
    if (!push.peer.empty()) return arrived(push.peer, push.step, push.subtree, push.sum);
    const Subtree piece{push.subtree.first - push.whole.first, push.subtree.count};
    if (auto squares = range_.add(push.step, piece, std::move(push.sum)))
      tell(Gathered{{index_}, push.step, std::move(*squares)});
  }

  void send(const LocalRounds::Push& order) {
    auto slice = room_->slices[index_]->take();
    if (!slice.ok()) return tell(ShardFailed{slice.error()});
    const std::span<float> values((*slice)->data(), (*slice)->elements());
    if (!range_.take_gradient(order.step, order.scale, values)) return;
    if (range_.owned())
      arrived("", order.step, order.run, *slice);
    else
      send_slice(*room_, index_, order.step, order.run, values.data(), *slice, owed_);
    tell(LocalDisplaced{index_, order.step});
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

  void copy_weights() {
    auto part = std::make_shared<ShardState>();
    part->offset = range_.range().begin;
    part->weights.assign(range_.weights().begin(), range_.weights().end());
    tell(WeightsCopied{std::move(part)});
  }

  void weights_here(const WeightsHere& here) {
    Status status;
    if (here.frame == 0)  // the coordinator's, by the step that they begin a segment with
      range_.take(LooseRange::version(here.step),
                  {here.weights->data(), range_.range().end - range_.range().begin});
    else
      status = range_.take_frame(here.step, PartRoom::frame_in(here.weights, here.frame),
                                 room_->weight_codecs[index_]);
    if (status.ok())
      tell(Tick{});  // look what is whole now
    else
      tell(ShardFailed{status.error()});
  }

 private:
  void arrived(const std::string& peer, StepId step, Subtree run, GradientHandle gradient) {
    if (!range_.is_open()) return;
    const auto applied = range_.apply(peer, step, run, std::move(gradient));
    if (!applied.ok())
      return room_->node->log.warning("node " + peer + ": " + applied.error().message() +
                                      "; dropped");
    if (*applied == LooseRange::Applied::kNew) tell(Displaced{{index_}, step, run.first});
    if (*applied == LooseRange::Applied::kLate) return;
    if (peer.empty())
      tell(Tick{});
    else
      room_->publish(index_, range_.version_for(peer), range_.weights(), &peer);
  }

  LocalServerActor::pointer self_;
  const std::shared_ptr<PartRoom> room_;
  LooseRange& range_;
  const uint32_t index_;
  const DeputyActor deputy_;
  ErrorFeedback owed_;
};

}  // namespace

LocalServerActor::behavior_type loose_server(LocalServerActor::pointer self,
                                             std::shared_ptr<PartRoom> room, uint32_t index,
                                             DeputyActor deputy) {
  const auto server = std::make_shared<LooseServer>(self, std::move(room), index, deputy);
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
