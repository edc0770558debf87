// Which node of a job holds which of its parameters.
#pragma once

#include "actors/conductor.h"

namespace fastserve {

/// Which node owns each shard, in the order of the model: one for each lane of the serving nodes,
/// and that so many times over (`stripes`), as long as there are at most `most`. So every node has
/// something of all layers, and all have something to send from the first layer of a backward
/// pass to its last.
std::vector<std::string> place_shards(const std::vector<JobNode>& nodes, size_t most,
                                      size_t stripes);
/// The nodes that hold parameters, in their order.
std::vector<std::string> serving_nodes(const std::vector<JobNode>& nodes);
/// How often, for a job whose model has so many elements.
size_t count_stripes(const TrainSpec& spec, size_t elements, const std::vector<JobNode>& nodes);

}  // namespace fastserve
