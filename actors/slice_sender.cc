#include "actors/slice_sender.h"

#include <algorithm>

#include "train/unit_sum.h"

namespace fastserve {

using namespace messages;

void send_slice(PartRoom& room, uint32_t shard, StepId step, Subtree name, const float* values,
                GradientHandle owner, ErrorFeedback& owed) {
  const auto send = [&](wire_messages::BulkKind kind, BulkSource bytes) {
    const uint64_t tag = static_cast<uint64_t>(kind) | (uint64_t{shard} + 1) << 32;
    for (const std::string& holder : room.held.others(shard))
      room.node->hub->send(
          holder, {tag, room.order.job, step.value, uint64_t{name.first} << 32 | name.count},
          {bytes}, shard);
  };
  const GradientCodec& codec = room.gradient_codecs[shard];
  if (codec.format().kind == GradientKind::kFloat32) {
    const auto& range = room.ranges[shard];
    return send(wire_messages::BulkKind::kGradient,
                {std::as_bytes(std::span(values, range.end - range.begin)), std::move(owner)});
  }
  auto buffer = room.frames[shard]->take();
  if (!buffer.ok()) return;  // host memory is out: the part will not live long
  const std::span<const float> coded(values, codec.elements());
  std::span<std::byte> frame = PartRoom::frame_in(*buffer, codec.encoded_bytes());
  if (!codec.encode(coded, owed, frame).ok()) {
    // Not finite: the shard is to see it.
    frame = PartRoom::frame_in(*buffer, codec.exact_bytes());
    codec.encode_exact(coded, frame);
  }
  send(wire_messages::BulkKind::kGradientFrame, {frame, *buffer});
}

namespace {

/// To this node's own copy of the shard.
void hand_over(PartRoom& room, uint32_t shard, StepId step, const UnitSum::Whole& whole) {
  const ParameterServerActor server =
      room.held.holds(shard) ? room.servers.get(shard) : ParameterServerActor();
  if (server == nullptr) return;
  GradientHandle own = whole.owner;
  if (!room.held.others(shard).empty()) {  // it is summed further while those bytes are under way
    auto slice = room.slices[shard]->take();
    if (!slice.ok()) return;  // host memory is out: the part will not live long
    const auto& range = room.ranges[shard];
    std::copy_n(whole.data, range.end - range.begin, (*slice)->data());
    own = std::move(*slice);
  }
  caf::anon_send(server, PushGradient{step, whole.unit, whole.unit, std::move(own), {}, 1});
}

/// A node that has come to hold the shard, and to which there is no lane yet, will not get what
/// counts: the job is to do without it, or it would wait for ever.
void tell_of_unmet(const PartRoom& room, uint32_t shard, const DeputyActor& deputy) {
  if (room.spec.replicas == 0) return;
  for (const std::string& holder : room.held.others(shard))
    if (!room.node->hub->connected(holder))
      caf::anon_send(
          deputy,
          PeerGone{holder, {ErrorCode::kUnavailable, "has no lane yet", "node " + holder, ""}});
}

}  // namespace

ParameterServerActor::behavior_type slice_sender(ParameterServerActor::pointer self,
                                                 std::shared_ptr<PartRoom> room, uint32_t shard,
                                                 DeputyActor deputy) {
  const ParameterShard::Range range = room->ranges[shard];
  auto sums = std::make_shared<UnitSum>(range.begin, range.end, room->backend->ops());
  auto owed = std::make_shared<ErrorFeedback>();
  return {
      [=](PushGradient& push) {
        const auto whole = sums->add(push.step, push.whole, push.subtree, std::move(push.sum));
        if (!whole) return;
        owed->match_scale(push.scale);
        tell_of_unmet(*room, shard, deputy);
        send_slice(*room, shard, push.step, whole->unit, whole->data, whole->owner, *owed);
        hand_over(*room, shard, push.step, *whole);
      },
      [](const Apply&) {},
      [](const Close&) {},
      [](const Skip&) {},
      [](const CopyState&) {},
      [](const CopyWeights&) {},
      [](const SendWeights&) {},
  };
}

}  // namespace fastserve
