// Training that stays on several devices of one host, which share it out.
#pragma once

#include <vector>

#include "model/device_link.h"
#include "train/resident_backend.h"

namespace fastserve {

/// Each device holds all weights, as a resident backend does, and computes gradients in memory of
/// its own: it is one of members(). Of the optimiser each holds the moments of its shards alone:
/// gradients come to them over the link and are summed along the tree, and the new weights go from
/// there to all. So the bits are those of one device, and so is the numerics_id().
/// With TrainPlan::reduce kRing each device sums its own microbatches, and the link's collectives
/// do the rest: reduces() is true then, and the numerics_id() one of its own. Where the link has
/// none it is as with kTree, and `log` tells why.
///
/// What this backend does itself, the first member does. refresh() brings what the member that is
/// asked has of the tiles into all. Once something has failed with any of the devices, sync() of
/// each says so, for ever: what others have of its weights is not to be counted on.
///
/// `devices`: two or more, with memory of their own. kInvalidArgument when they compute unlike
/// bits; else as make_resident_backend().
Result<std::unique_ptr<TrainBackend>> make_cards_backend(
    const ModelConfig& config, Precision precision, std::vector<std::unique_ptr<Device>> devices,
    const LinkFactory& link, const TrainPlan& plan, std::optional<Recompute> recompute,
    const Log& log);

/// One device of each, on which a job is to work together.
Result<std::vector<std::unique_ptr<Device>>> open_cards(const std::vector<DeviceFactory>& all);

/// kInvalidArgument, with what is unlike, unless all compute the same bits.
Status check_alike(std::span<const std::unique_ptr<Device>> devices);

}  // namespace fastserve
