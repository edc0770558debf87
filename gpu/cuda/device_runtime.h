// gpu/runtime.h on a card.
#pragma once

#include <memory>
#include <string>

#include "gpu/runtime.h"
#include "model/device_parts.h"

namespace fastserve::gpu {

/// kResourceExhausted or kUnavailable when the card cannot be had. `name` is for messages.
Result<std::unique_ptr<Runtime>> make_cuda_runtime(int index, const std::string& name);

/// Managed memory: of the host and of every card.
Result<std::unique_ptr<DeviceBuffer>> allocate_shared_memory(size_t bytes);

}  // namespace fastserve::gpu
