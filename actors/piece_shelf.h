// Pieces of checkpoints on a node's disk, for its coordinator. For actors/ alone.
#pragma once

#include <memory>

#include "actors/node_part.h"

namespace fastserve {

/// Lists, sends and removes what lies in the node's PieceStore. It reads whole pieces: spawn it
/// detached.
PieceShelfActor::behavior_type piece_shelf(PieceShelfActor::pointer self,
                                           std::shared_ptr<const NodeParts> node);

}  // namespace fastserve
