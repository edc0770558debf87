// The emulated GPU as a device to choose: for tests of what stands on devices, on any machine.
#pragma once

#include <memory>

#include "model/device.h"

namespace fastserve {

/// True when this build has the emulator in it (CMake's FASTSERVE_EMULATED_DEVICE).
bool has_emulated_device();
/// A GPU whose kernels run on `threads` threads of the host, thousands of times slower than on a
/// card, and whose `memory` bytes (0: 8 GiB) the host cannot reach. Strict where a card would
/// crash. kUnsupported in a build without it.
Result<std::unique_ptr<Device>> make_emulated_device(int threads, uint64_t memory);

}  // namespace fastserve
