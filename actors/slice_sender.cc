#include "actors/slice_sender.h"

#include "train/unit_sum.h"

namespace fastserve {

using namespace messages;

ParameterServerActor::behavior_type slice_sender(ParameterServerActor::pointer self,
                                                 std::shared_ptr<PartRoom> room, uint32_t shard) {
  const ParameterShard::Range range = room->ranges[shard];
  auto sums = std::make_shared<UnitSum>(range.begin, range.end, room->backend->ops());
  return {
      [=](PushGradient& push) {
        const auto whole = sums->add(push.step, push.whole, push.subtree, std::move(push.sum));
        if (!whole) return;
        const std::span<const float> slice(whole->data, range.end - range.begin);
        const uint64_t kind =
            static_cast<uint64_t>(wire_messages::BulkKind::kGradient) | (uint64_t{shard} + 1) << 32;
        const uint64_t key = uint64_t{whole->unit.first} << 32 | whole->unit.count;
        room->node->hub->send(room->order.owners[shard],
                              {kind, room->order.job, push.step.value, key},
                              {{std::as_bytes(slice), whole->owner}}, shard);
      },
      [](const Apply&) {},
      [](const Skip&) {},
      [](const CopyState&) {},
      [](const CopyWeights&) {},
      [](const SendWeights&) {},
  };
}

}  // namespace fastserve
