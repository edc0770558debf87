// Copies from card to card.
#pragma once

#include <memory>
#include <vector>

#include "gpu/runtime.h"
#include "model/device_link.h"

namespace fastserve::gpu {

/// Over NVLink or the bus where the cards reach each other, else through the host, as the driver
/// sees fit. Requires runtimes of make_cuda_runtime(), on a card each.
Result<std::unique_ptr<DeviceLink>> make_peer_link(std::vector<Runtime*> cards);

}  // namespace fastserve::gpu
