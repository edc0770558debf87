// Actors that stand, beside a job's coordinator, for those on other nodes.
#pragma once

#include "actors/cluster_messages.h"
#include "actors/messages.h"

namespace fastserve {

/// Hands units of work to a node's part.
TrainerActor::behavior_type remote_trainer(TrainerActor::pointer self, PartActor part);

/// Hands orders to the node that owns the shard. Gradients do not come this way.
ParameterServerActor::behavior_type remote_shard(ParameterServerActor::pointer self, uint32_t shard,
                                                 PartActor part);

}  // namespace fastserve
