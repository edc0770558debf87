// How a training job uses a device with memory of its own.
#pragma once

#include <CLI/CLI.hpp>

#include "train/spec.h"

namespace fastserve {

/// Adds --optimiser and --recompute, which set fields of `placement`: it must live as long as `c`.
void add_device_use(CLI::App& c, TrainPlacement& placement);

}  // namespace fastserve
