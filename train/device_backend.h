// Training on a Device.
#pragma once

#include <functional>

#include "train/backend.h"
#include "train/spec.h"

namespace fastserve {

/// Makes one device of `lanes` lanes. All must have the same numerics_id.
using DeviceFactory = std::function<Result<std::unique_ptr<Device>>(int lanes)>;

/// A backend whose weights live on a device of one lane; each source gets a device of its own.
/// The masters start at zero.
Result<std::unique_ptr<TrainBackend>> make_device_backend(const ModelConfig& config,
                                                          Precision precision,
                                                          DeviceFactory make_device);

}  // namespace fastserve
