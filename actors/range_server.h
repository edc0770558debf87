// What the actors of one range share in jobs whose nodes are apart. For local_server.cc and
// loose_server.cc alone.
#pragma once

#include <string>
#include <utility>

#include "actors/local_server.h"
#include "actors/slice_sender.h"

namespace fastserve {

/// `Range` is LocalRange or LooseRange.
template <class Range>
class RangeServer {
 public:
  RangeServer(LocalServerActor::pointer self, std::shared_ptr<PartRoom> room, Range& range,
              uint32_t index, DeputyActor deputy)
      : room_(std::move(room)),
        range_(range),
        index_(index),
        self_(self),
        deputy_(std::move(deputy)) {}

  Range& range() { return range_; }
  template <class Message>
  void tell(Message message) {
    self_->send(deputy_, std::move(message));
  }

 protected:
  /// A piece of this node's own gradient, counted from the run's front.
  void sum_own(messages::PushGradient& push) {
    const Subtree piece{push.subtree.first - push.whole.first, push.subtree.count};
    if (auto squares = range_.add(push.step, piece, std::move(push.sum)))
      tell(messages::Gathered{{index_}, push.step, std::move(*squares)});
  }
  /// Lets `fill` write what the owner is to get, unless that is out of date, and sends it; `keep`
  /// takes it where this node is the owner.
  template <class Fill, class Keep>
  void hand_over(StepId step, Subtree run, const Fill& fill, const Keep& keep) {
    auto slice = room_->slices[index_]->take();
    if (!slice.ok()) return tell(messages::ShardFailed{slice.error()});
    const std::span<float> values((*slice)->data(), (*slice)->elements());
    if (!fill(values)) return;
    if (range_.owned())
      keep(*slice);
    else
      send_slice(*room_, index_, step, run, values.data(), *slice, owed_);
    tell(messages::LocalDisplaced{index_, step});
  }
  /// Floats are the coordinator's, of `whole`; a frame is the owner's.
  void take_weights(const messages::WeightsHere& here, StepId whole) {
    Status status;
    if (here.frame == 0)
      range_.take(whole, {here.weights->data(), range_.range().end - range_.range().begin});
    else
      status = range_.take_frame(here.step, PartRoom::frame_in(here.weights, here.frame),
                                 room_->weight_codecs[index_]);
    if (status.ok())
      tell(messages::Tick{});  // look what is whole now
    else
      tell(messages::ShardFailed{status.error()});
  }
  void tell_weights(std::span<const float> weights) {
    auto part = std::make_shared<ShardState>();
    part->offset = range_.range().begin;
    part->weights.assign(weights.begin(), weights.end());
    tell(messages::WeightsCopied{std::move(part)});
  }
  void dropped(const std::string& peer, const Error& why) {
    room_->node->log.warning("node " + peer + ": " + why.message() + "; dropped");
  }

  const std::shared_ptr<PartRoom> room_;
  Range& range_;
  const uint32_t index_;

 private:
  LocalServerActor::pointer self_;
  const DeputyActor deputy_;
  ErrorFeedback owed_;  // of what is sent to the owner
};

}  // namespace fastserve
