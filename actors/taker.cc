#include "actors/taker.h"

#include <algorithm>

namespace fastserve {

using namespace messages;

TakerActor::behavior_type taker(TakerActor::pointer self, std::shared_ptr<PartRoom> room,
                                std::vector<ParameterServerActor> shards, DeputyActor deputy) {
  return {
      [=](const WeightsHere& here) {
        const auto& range = room->ranges[here.shard];
        if (here.frame == 0) {
          room->replica->take(here.shard, here.step,
                              {here.weights->data(), range.end - range.begin});
        } else if (const Status status = room->replica->take_frame(
                       here.shard, here.step, PartRoom::frame_in(here.weights, here.frame),
                       room->weight_codecs[here.shard]);
                   !status.ok()) {
          self->send(deputy, ShardFailed{status.error()});
          return;
        }
        self->send(deputy, Tick{});  // look what is whole now
      },
      [=](const GradientHere& here) {
        const GradientCodec& codec = room->gradient_codecs[here.shard];
        auto slice = room->slices[here.shard]->take();
        const Status status = slice.ok()
                                  ? codec.decode(PartRoom::frame_in(here.gradient, here.frame),
                                                 {(*slice)->data(), codec.elements()})
                                  : Status(slice.error());
        if (!status.ok()) {
          room->node->log.warning("node " + here.peer + ": " + status.error().message() +
                                  "; dropped");
          return;
        }
        // What lies behind the last tile is in no frame.
        std::fill((*slice)->data() + codec.elements(), (*slice)->data() + (*slice)->elements(), 0);
        self->send(shards[here.shard], PushGradient{here.step, here.subtree, here.subtree,
                                                    std::move(*slice), here.peer});
      },
  };
}

}  // namespace fastserve
