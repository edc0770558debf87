// Stands for a parameter server on another node.
#pragma once

#include "actors/part_room.h"

namespace fastserve {

/// Joins what this node's trainers push for the shard, unit by unit, and sends each unit's sum over
/// the bulk lane to the nodes that hold it, and to this node's own copy, if there is one. Orders to
/// apply or copy go to the shard itself. `deputy` is told PeerGone of a holder without a lane.
ParameterServerActor::behavior_type slice_sender(ParameterServerActor::pointer self,
                                                 std::shared_ptr<PartRoom> room, uint32_t shard,
                                                 DeputyActor deputy);

/// Sends the shard's range of something to the other nodes that hold it in the job's form of
/// gradients; `values` lie in `owner`. What is not finite goes as it is.
void send_slice(PartRoom& room, uint32_t shard, StepId step, Subtree name, const float* values,
                GradientHandle owner, ErrorFeedback& owed);

}  // namespace fastserve
