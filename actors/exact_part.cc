#include "actors/exact_part.h"

#include "actors/parameter_server.h"
#include "actors/slice_sender.h"

namespace fastserve {

using namespace messages;

Apply to_apply(const wire_messages::ApplyShard& order) {
  ApplyOrder apply;
  apply.step = {order.step};
  apply.learning_rate = std::bit_cast<double>(order.learning_rate);
  apply.grad_scale = std::bit_cast<double>(order.grad_scale);
  apply.update = order.update;
  return {apply};
}

ExactPart::ExactPart(DeputyActor::pointer self, std::shared_ptr<PartRoom> room,
                     std::vector<caf::strong_actor_ptr>& own)
    : self_(self), room_(std::move(room)), own_(own) {}

ParameterServerActor ExactPart::serve(uint32_t shard) {
  ParameterServerParts parts{
      room_->shards[shard], &room_->gate, &*room_->turns, {}, room_->node->log};
  // A killed actor may be at work for a while yet: the room lives as long.
  parts.publish = [room = room_, shard](StepId at, std::span<const float> weights,
                                        const std::string* only) {
    room->publish(shard, at, weights, only);
  };
  parts.send_state = [room = room_, shard](std::shared_ptr<const ShardState> state,
                                           const std::string& to) {
    room->send_copy(shard, state, to);
  };
  const auto server = self_->system().spawn<caf::detached>(
      parameter_server, ShardId{shard}, std::move(parts), CoordinatorActor(DeputyActor(self_)));
  own_.push_back(caf::actor_cast<caf::strong_actor_ptr>(server));
  room_->servers.set(shard, server);
  return server;
}

std::vector<ParameterServerActor> ExactPart::begin() {
  std::vector<ParameterServerActor> targets;
  for (uint32_t i = 0; i < room_->ranges.size(); i++) {
    const bool here = room_->shards[i] != nullptr;
    if (here) targets.push_back(serve(i));
    if (here && room_->spec.replicas == 0) continue;
    const auto sender =
        self_->system().spawn<caf::detached>(slice_sender, room_, i, DeputyActor(self_));
    own_.push_back(caf::actor_cast<caf::strong_actor_ptr>(sender));
    targets.resize(i);
    targets.push_back(sender);
  }
  return targets;
}

void ExactPart::held_by(ShardHolders holders) {
  if (holders.size() != room_->ranges.size()) return;
  for (const uint32_t led : room_->held.set(std::move(holders))) to_shard(led, SendWeights{});
}

void ExactPart::joined(const std::string& peer) {
  for (uint32_t i = 0; i < room_->ranges.size(); i++)
    if (room_->held.leads(i)) to_shard(i, SendWeights{peer});
}

bool ExactPart::copy_here(const CopyHere& copy) {
  const ShardState& state = *copy.state;
  const auto before = copied_.find(copy.shard);
  // Made already, for a hold that ended when who led was lost: that one's answer counts no more.
  if (before != copied_.end() && before->second == state.step) return true;
  if (before != copied_.end() && before->second > state.step) return false;
  if (!room_->replica->restore(copy.shard, state.step, state.weights)) return false;
  const StepLayout layout(static_cast<uint32_t>(room_->plan.microbatches));
  auto shard = std::make_shared<ParameterShard>(*room_->backend, room_->ranges[copy.shard],
                                                room_->spec, layout, state.step);
  shard->restore_range(state.m, state.v);
  if (const auto stale = room_->servers.get(copy.shard))
    caf::anon_send_exit(stale, caf::exit_reason::kill);
  room_->shards[copy.shard] = std::move(shard);
  copied_[copy.shard] = state.step;
  serve(copy.shard);
  return true;
}

}  // namespace fastserve
