// What the cards of a host add up together, by NCCL.
#pragma once

#include <memory>
#include <vector>

#include "base/clock.h"
#include "gpu/cuda/libraries.h"
#include "gpu/runtime.h"
#include "model/device_link.h"

namespace fastserve::gpu {

/// Collectives over NCCL; copies are another link's.
///
/// Owns:     a communicator for each card, from open_collectives() on. They are destroyed once, or
///           aborted as soon as a card or NCCL has failed or nothing has moved for `patience`: a
///           kernel that waits for a lost card ends then, and every card's sync() tells.
/// Threads:  any. Copies and collectives are put into the cards' streams one at a time: two that
///           cross, each before the other on one of two cards, would wait for each other for ever.
/// Promises: a host's call that never returns is none of its own: communicators do not block, and
///           settle() looks instead of waiting.
///
/// Requires runtimes of make_cuda_runtime(), on a card each. `library` without a table: the
/// collectives' error says why.
std::unique_ptr<DeviceLink> make_nccl_link(std::vector<Runtime*> cards,
                                           std::unique_ptr<DeviceLink> copies,
                                           const Opened<Nccl>& library, const Clock& clock,
                                           Nanoseconds patience = std::chrono::minutes(2));

}  // namespace fastserve::gpu
