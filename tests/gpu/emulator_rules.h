// What tests of the emulator's rules share.
#pragma once

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "gpu/simt/block.h"

namespace fastserve::gpu {

/// Orders of threads that have little in common.
inline const std::vector<simt::Options> kOrders = {{.order = simt::Order::kLockstep},
                                                   {.order = simt::Order::kForward},
                                                   {.order = simt::Order::kReverse},
                                                   {.order = simt::Order::kShuffled, .seed = 3}};

// Races on purpose: under ThreadSanitizer they are left to a test of ctest that wants its report.
#if defined(__SANITIZE_THREAD__)
inline const auto kRaces = doctest::skip();
#else
inline const auto kRaces = doctest::skip(false);
#endif

inline bool mentions(const std::string& text, const char* words) {
  return text.find(words) != std::string::npos;
}

}  // namespace fastserve::gpu
