// What joins emulated cards.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "gpu/runtime.h"
#include "model/device_link.h"

namespace fastserve::simt {

/// Copies and collectives are done when they return. A sum goes around as over a ring: it begins
/// with the card behind the one that gets it, and ends there.
///
/// Requires runtimes of make_emulated_runtime(). `no_collectives`: what open_collectives() says
/// instead of making ready for them.
std::unique_ptr<DeviceLink> make_emulated_link(std::vector<gpu::Runtime*> cards,
                                               std::optional<Error> no_collectives = {});

}  // namespace fastserve::simt
