#include "actors/slice_sender.h"

#include "train/unit_sum.h"

namespace fastserve {

using namespace messages;

ParameterServerActor::behavior_type slice_sender(ParameterServerActor::pointer self,
                                                 std::shared_ptr<PartRoom> room, uint32_t shard) {
  const ParameterShard::Range range = room->ranges[shard];
  auto sums = std::make_shared<UnitSum>(range.begin, range.end, room->backend->ops());
  auto owed = std::make_shared<ErrorFeedback>();
  const auto send = [=](StepId step, Subtree unit, wire_messages::BulkKind kind, BulkSource bytes) {
    const uint64_t tag = static_cast<uint64_t>(kind) | (uint64_t{shard} + 1) << 32;
    room->node->hub->send(
        room->order.owners[shard],
        {tag, room->order.job, step.value, uint64_t{unit.first} << 32 | unit.count},
        {std::move(bytes)}, shard);
  };
  return {
      [=](PushGradient& push) {
        const auto whole = sums->add(push.step, push.whole, push.subtree, std::move(push.sum));
        if (!whole) return;
        const GradientCodec& codec = room->gradient_codecs[shard];
        if (codec.format().kind == GradientKind::kFloat32) {
          const std::span<const float> slice(whole->data, range.end - range.begin);
          return send(push.step, whole->unit, wire_messages::BulkKind::kGradient,
                      {std::as_bytes(slice), whole->owner});
        }
        auto buffer = room->frames[shard]->take();
        if (!buffer.ok()) return;  // host memory is out: the part will not live long
        const std::span<const float> values(whole->data, codec.elements());
        std::span<std::byte> frame = PartRoom::frame_in(*buffer, codec.encoded_bytes());
        owed->match_scale(push.scale);
        if (!codec.encode(values, *owed, frame).ok()) {
          // Not finite: the shard is to see it.
          frame = PartRoom::frame_in(*buffer, codec.exact_bytes());
          codec.encode_exact(values, frame);
        }
        send(push.step, whole->unit, wire_messages::BulkKind::kGradientFrame, {frame, *buffer});
      },
      [](const Apply&) {},
      [](const Skip&) {},
      [](const CopyState&) {},
      [](const CopyWeights&) {},
      [](const SendWeights&) {},
  };
}

}  // namespace fastserve
