// The emulated GPU as a device to choose: for tests of what stands on devices, on any machine.
#pragma once

#include <memory>

#include "model/device_link.h"

namespace fastserve {

/// True when this build has the emulator in it (CMake's FASTSERVE_EMULATED_DEVICE).
bool has_emulated_device();
/// A GPU whose kernels run on `threads` threads of the host, thousands of times slower than on a
/// card, and whose `memory` bytes (0: 8 GiB) the host cannot reach. Strict where a card would
/// crash. kUnsupported in a build without it.
Result<std::unique_ptr<Device>> make_emulated_device(int threads, uint64_t memory);

/// Joins devices of make_emulated_device().
Result<std::unique_ptr<DeviceLink>> link_emulated_devices(std::span<Device* const> devices);

}  // namespace fastserve
