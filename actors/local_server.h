// The actor of one range of the weights in a node that takes local steps.
#pragma once

#include "actors/part_room.h"
#include "train/local_rounds.h"

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::LocalRounds::Begin)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::LocalRounds::Apply)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::LocalRounds::Skip)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::LocalRounds::Displace)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::LocalRounds::Push)

namespace fastserve {

/// To this node's trainers, and to the coordinator if it owns the range, a parameter server.
using LocalServerActor = ParameterServerActor::extend<
    caf::reacts_to<LocalRounds::Begin>, caf::reacts_to<LocalRounds::Apply>,
    caf::reacts_to<LocalRounds::Skip>, caf::reacts_to<LocalRounds::Displace>,
    caf::reacts_to<LocalRounds::Push>, caf::reacts_to<messages::WeightsHere>>;

/// Carries out what the node's LocalRounds orders, sends displacements to the range's owner, takes
/// in new weights from there or, as the owner, makes them.
LocalServerActor::behavior_type local_server(LocalServerActor::pointer self,
                                             std::shared_ptr<PartRoom> room, uint32_t index,
                                             DeputyActor deputy);

}  // namespace fastserve
