// CUDA's error codes as this project's.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "base/result.h"

namespace fastserve::gpu {

/// The card no longer answers this process: every later call fails as well.
bool card_is_lost(cudaError_t code);

/// `doing` is a clause: "copying 4 KiB to the card". Clears the runtime's own memory of the
/// failure.
Error cuda_error(cudaError_t code, const std::string& doing, const std::string& card);

}  // namespace fastserve::gpu
