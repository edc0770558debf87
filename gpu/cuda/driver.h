// The driver asked directly about its cards, before the CUDA runtime is.
#pragma once

#include "gpu/inventory.h"

namespace fastserve::gpu {

/// Fills driver, runtime, gpus and problem. Every failure becomes a problem with what to do.
void ask_driver(GpuInventory& into);

/// Least compute capability that the kernels are built for.
inline constexpr int kLeastMajor = 8, kLeastMinor = 0;

}  // namespace fastserve::gpu
