// Training where gradients are computed in memory that the host does not reach.
#pragma once

#include "train/device_backend.h"

namespace fastserve {

/// Parameter server on the CPU: the host holds the masters, the optimiser's state and the gradients
/// that trainers hand out, as it does for a CPU's job, and its device's operations work on them.
/// Each source has a device with weights of its own: before a microbatch it copies in the tiles
/// that were refreshed since, and after one it copies the gradient out. What another trainer
/// computed, a checkpoint and a node of a cluster never meet the device's memory.
///
/// `first`: what make_device made, to tell its kind. Requires memory of its own.
Result<std::unique_ptr<TrainBackend>> make_split_backend(const ModelConfig& config,
                                                         Precision precision,
                                                         std::unique_ptr<Device> first,
                                                         DeviceFactory make_device,
                                                         const DeviceFactory& make_host,
                                                         std::optional<Recompute> recompute = {});
/// Its numerics_id(): both sides make a job's bits.
std::string split_numerics(const Device& device, const Device& host);

}  // namespace fastserve
