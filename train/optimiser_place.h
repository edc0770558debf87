// Whether a job's optimiser works on its device or on the host.
#pragma once

#include <string>

#include "base/log.h"
#include "train/plan.h"

namespace fastserve {

/// True: on the device, which has memory of its own; `spec` and `placement` are then filled in as
/// suits it. False: on the host. It is the host's where `placement` says so, where a checkpoint was
/// made so (`before`: its numerics id, or empty; `host` would be beside the device), and where the
/// device's memory is too small: an error if the device was asked for, else `log` tells.
Result<bool> place_optimiser(const Device& device, const Device& host, const std::string& before,
                             int cores, const Log& log, TrainSpec& spec, TrainPlacement& placement);

}  // namespace fastserve
