// Whether a job's optimiser works on its devices or on the host.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "base/log.h"
#include "train/plan.h"

namespace fastserve {

/// True: on the devices, which have memory of their own and share it out; `spec` and `placement`
/// are then filled in as suits them. False: on the host. It is the host's where `placement` says
/// so, where a checkpoint was made so (`before`: its numerics id, or empty; `host` would be beside
/// the devices), and where the memory of one is too small: an error if they were asked for, else
/// `log` tells.
Result<bool> place_optimiser(std::span<const std::unique_ptr<Device>> devices, const Device& host,
                             const std::string& before, int cores, const Log& log, TrainSpec& spec,
                             TrainPlacement& placement);

}  // namespace fastserve
