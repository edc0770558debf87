// What joins emulated cards.
#pragma once

#include <memory>
#include <vector>

#include "gpu/runtime.h"
#include "model/device_link.h"

namespace fastserve::simt {

/// Copies are done when they return. Requires runtimes of make_emulated_runtime().
std::unique_ptr<DeviceLink> make_emulated_link(std::vector<gpu::Runtime*> cards);

}  // namespace fastserve::simt
