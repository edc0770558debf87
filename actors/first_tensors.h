// What a node is told and sent before a job begins. For conductor.cc alone.
#pragma once

#include "actors/conductor.h"
#include "train/shard_copies.h"

namespace fastserve {

/// What of a node's order is the job's alone.
wire_messages::PartOrder order_of(const ConductorParts& parts, const JobNode& node);
/// The data, to a node that has not got it from earlier.
void send_data(const ConductorParts& parts, const std::string& node);
/// All weights, and the moments of those that it holds.
void send_weights(const ConductorParts& parts, const std::vector<ParameterShard::Range>& ranges,
                  const ShardHolders& holders, const std::string& node);

}  // namespace fastserve
