// A GPU as a Device, over whichever runtime drives it.
#pragma once

#include <memory>

#include "gpu/attention_engine.h"
#include "gpu/matmul_engine.h"
#include "gpu/pinned_shelf.h"
#include "gpu/runtime.h"
#include "model/device.h"

namespace fastserve::gpu {

/// `fast` is asked first for each product and may be null; the mma.sync engine takes the rest.
/// `attention`, too, may be null, and our kernels take the rest.
/// Loads take pinned memory from `shelf`, where there is one, which outlives the device.
/// Memory handed out by the device must be gone before the device is.
std::unique_ptr<Device> make_gpu_device(std::unique_ptr<Runtime> runtime,
                                        std::unique_ptr<MatmulEngine> fast = nullptr,
                                        std::unique_ptr<AttentionEngine> attention = nullptr,
                                        PinnedShelf* shelf = nullptr);

/// What drives a device that make_gpu_device() made.
Runtime& runtime_of(Device& device);

}  // namespace fastserve::gpu
