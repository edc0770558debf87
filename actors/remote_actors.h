// Actors that stand, beside a job's coordinator, for those on other nodes.
#pragma once

#include <vector>

#include "actors/cluster_messages.h"
#include "actors/messages.h"

namespace fastserve::messages {

/// To a RemoteShardActor: those that hold the shard, the leading one first.
struct PartsNow {
  std::vector<PartActor> parts;
};

}  // namespace fastserve::messages

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::PartsNow)

namespace fastserve {

using RemoteShardActor = ParameterServerActor::extend<caf::reacts_to<messages::PartsNow>>;

/// Hands units of work to a node's part.
TrainerActor::behavior_type remote_trainer(TrainerActor::pointer self, PartActor part);

/// Hands orders to the nodes that hold the shard. The leading one is asked for its state: until the
/// next step another one is, too, if it comes to lead meanwhile. All are asked for the best
/// weights, since the job does not wait for those. Gradients do not come this way.
RemoteShardActor::behavior_type remote_shard(RemoteShardActor::pointer self, uint32_t shard,
                                             std::vector<PartActor> parts);

}  // namespace fastserve
