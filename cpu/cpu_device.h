// The CPU as a Device: fast paths chosen by ISA, or the reference twins.
#pragma once

#include <memory>

#include "cpu/isa.h"
#include "model/device.h"

namespace fastserve {

struct CpuDeviceOptions {
  int lanes = 1;  ///< cores one op may use
  Isa isa = Isa::kPortable;
};

/// kInvalidArgument for lanes outside 1..1024, kUnsupported for an ISA this machine lacks.
Result<std::unique_ptr<Device>> make_cpu_device(const CpuDeviceOptions& options);

/// Makes CPU devices of choose_isa(), and fails as that does.
Result<DeviceFactory> cpu_devices();

/// Every op in the plainest loops with double accumulation: the specification the fast paths and
/// other devices are held against. One lane.
std::unique_ptr<Device> make_reference_device();

/// Cores this process may run on (affinity and cgroup quota respected).
int usable_cores();

}  // namespace fastserve
