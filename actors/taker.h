// Takes tensors in, beside the deputy of a node's part.
#pragma once

#include "actors/part_room.h"

namespace fastserve {

using TakerActor =
    caf::typed_actor<caf::reacts_to<messages::WeightsHere>, caf::reacts_to<messages::GradientHere>>;

/// Unpacks weights into the replica, and frames of gradients for the shards. Some share the work.
TakerActor::behavior_type taker(TakerActor::pointer self, std::shared_ptr<PartRoom> room,
                                std::vector<ParameterServerActor> shards, DeputyActor deputy);

}  // namespace fastserve
