// The parameter-server actor: one shard of the weights.
#pragma once

#include <memory>

#include "actors/messages.h"

namespace fastserve {

/// Runs detached, since summing and updating take milliseconds. Tells the coordinator when it has
/// the whole step's gradient, and again when the weights are updated.
ParameterServerActor::behavior_type parameter_server(ParameterServerActor::pointer self, ShardId id,
                                                     std::shared_ptr<ParameterShard> shard,
                                                     CoordinatorActor coordinator);

}  // namespace fastserve
