// The actor of one range of the weights in a job with loose consistency.
#pragma once

#include "actors/local_server.h"

namespace fastserve {

/// Sums the node's own gradient and sends it to the range's owner. As the owner it applies what
/// comes at once, and sends back weights to whom it came from, and to all where they meet.
LocalServerActor::behavior_type loose_server(LocalServerActor::pointer self,
                                             std::shared_ptr<PartRoom> room, uint32_t index,
                                             DeputyActor deputy);

}  // namespace fastserve
