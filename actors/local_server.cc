#include "actors/local_server.h"

#include "actors/slice_sender.h"

namespace fastserve {

using namespace messages;

namespace {

class LocalServer {
 public:
  LocalServer(LocalServerActor::pointer self, std::shared_ptr<PartRoom> room, uint32_t index,
              DeputyActor deputy)
      : self_(self),
        room_(std::move(room)),
        range_(*room_->local[index]),
        index_(index),
        deputy_(std::move(deputy)) {}

  LocalRange& range() { return range_; }
  template <class Message>
  void tell(Message message) {
    self_->send(deputy_, std::move(message));
  }

  void push(PushGradient& push) {
    if (!push.peer.empty()) return arrived(push.step, push.subtree.first, push.sum, push.peer);
    const Subtree piece{push.subtree.first - push.whole.first, push.subtree.count};
    if (auto squares = range_.add(push.step, piece, std::move(push.sum)))
      tell(Gathered{{index_}, push.step, std::move(*squares)});
  }

  void displace(const LocalRounds::Displace& order) {
    auto slice = room_->slices[index_]->take();
    if (!slice.ok()) return tell(ShardFailed{slice.error()});
    const std::span<float> values((*slice)->data(), (*slice)->elements());
    if (!range_.displace(order.round, values)) return;
    if (range_.owned())
      arrived(order.round, order.attempt, *slice, room_->node->name);
    else
      send_slice(*room_, index_, order.round, {order.attempt, order.share}, values.data(), *slice,
                 owed_);
    tell(LocalDisplaced{index_, order.round});
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
    if (!range_.is_open()) return;
    auto part = std::make_shared<ShardState>();
    part->offset = range_.range().begin;
    const auto weights = range_.outer().weights();
    part->weights.assign(weights.begin(), weights.end());
    tell(WeightsCopied{std::move(part)});
  }

  void weights_here(const WeightsHere& here) {
    Status status;
    if (here.frame == 0)
      range_.take(here.step, {here.weights->data(), range_.range().end - range_.range().begin});
    else
      status = range_.take_frame(here.step, PartRoom::frame_in(here.weights, here.frame),
                                 room_->weight_codecs[index_]);
    if (status.ok())
      tell(Tick{});  // look what is whole now
    else
      tell(ShardFailed{status.error()});
  }

 private:
  void arrived(StepId round, uint32_t attempt, GradientHandle displacement,
               const std::string& peer) {
    if (!range_.is_open()) return;
    const auto added = range_.outer().add(round, attempt, std::move(displacement));
    if (!added.ok())
      room_->node->log.warning("node " + peer + ": " + added.error().message() + "; dropped");
    else if (*added == OuterShard::Arrival::kNew)
      tell(Displaced{{index_}, round, attempt});
  }

  LocalServerActor::pointer self_;
  const std::shared_ptr<PartRoom> room_;
  LocalRange& range_;
  const uint32_t index_;
  const DeputyActor deputy_;
  ErrorFeedback owed_;  // of displacements
};

}  // namespace

LocalServerActor::behavior_type local_server(LocalServerActor::pointer self,
                                             std::shared_ptr<PartRoom> room, uint32_t index,
                                             DeputyActor deputy) {
  const auto server = std::make_shared<LocalServer>(self, std::move(room), index, deputy);
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
