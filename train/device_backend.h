// Training on a Device.
#pragma once

#include <optional>
#include <vector>

#include "train/backend.h"
#include "train/spec.h"

namespace fastserve {

/// A backend whose sources each compute on a device of their own. With devices in the host's memory
/// all share the weights; with others it is a split one (train/split_backend.h), whose optimiser
/// works on what `make_host` makes. The masters start at zero. `recompute`: nothing: where a
/// device's memory asks for it.
Result<std::unique_ptr<TrainBackend>> make_device_backend(const ModelConfig& config,
                                                          Precision precision,
                                                          DeviceFactory make_device,
                                                          const DeviceFactory& make_host = {},
                                                          std::optional<Recompute> recompute = {});

/// Makes a device of each in turn, so that sources are spread over them.
DeviceFactory in_turn(std::vector<DeviceFactory> all);
/// Those that make a device now; the one there is, untried. `log` is told of the others; the last
/// one's error where none does.
Result<std::vector<DeviceFactory>> that_open(const std::vector<DeviceFactory>& all, const Log& log);

/// numerics_id() of the backend that these would make.
Result<std::string> training_numerics(const DeviceFactory& make_device,
                                      const DeviceFactory& make_host);

}  // namespace fastserve
