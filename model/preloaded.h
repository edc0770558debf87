// A model's tensors, brought to where a device's copies reach them fastest.
#pragma once

#include <cstdint>
#include <functional>

#include "model/device.h"
#include "model/tensor.h"

namespace fastserve {

/// Both are asked for by the thread that called, and either may be empty.
struct PreloadWatch {
  std::function<void(double)> progress;  ///< 0..1, of the bytes
  std::function<bool()> stopped;         ///< true ends it
};

/// The bundle with its tensors copied to memory of the device's allocate_host() that is pinned:
/// loading it, any number of times, is copies at the link's speed, which the host has no part in.
/// Where the device's memory is the host's, the bundle as it is.
///
/// Owns:    nothing. The bundle that it returns owns its memory, which may outlive the device, and
///          needs nothing of the given one any more.
/// Threads: the caller, and some of its own for the copying, gone when it returns.
/// Errors:  the tensors' source's; kResourceExhausted when the tensors need more than `most` bytes,
///          with both, or when the host gives no more pinned memory; kCancelled. Nothing is left.
Result<ModelBundle> preload(Device& device, const ModelBundle& bundle, uint64_t most,
                            const PreloadWatch& watch = {});

}  // namespace fastserve
