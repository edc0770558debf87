// How memory is reported beside what was expected.
#pragma once

#include <fmt/format.h>

#include <string>

#include "base/file.h"

namespace fastserve {

/// "memory: 66.0 MiB at the peak; 64.0 MiB by the arithmetic (+3 %)"
inline std::string memory_text(uint64_t peak, uint64_t expected) {
  const double ratio = expected > 0 ? static_cast<double>(peak) / static_cast<double>(expected) : 1;
  return fmt::format("memory: {} at the peak; {} by the arithmetic ({:+.0f} %)", human_bytes(peak),
                     human_bytes(expected), 100 * (ratio - 1));
}

}  // namespace fastserve
