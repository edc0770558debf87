// Signed bytes as halves, for tensor cores: PTX under nvcc, plain arithmetic elsewhere.
#pragma once

#include "gpu/simt/simt.h"

namespace fastserve::gpu {

/// Bytes kLow and kHigh of four codes as halves side by side, exactly.
template <int kLow, int kHigh>
FS_DEVICE uint32_t halves_of(uint32_t codes) {
#if defined(__CUDACC__)
  // 0x6400 | n is 1024 + n for n below 1024.
  const uint32_t above = __byte_perm(codes ^ 0x80808080u, 0x64646464u,
                                     0x4040u | unsigned(kLow) | unsigned(kHigh) << 8);
  uint32_t both;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(both) : "r"(above), "r"(0x64806480u));  // 1024 + 128
  return both;
#else
  const auto code = [&](int i) { return float(static_cast<int8_t>(codes >> (8 * i))); };
  return pack_two<Float16>(code(kLow), code(kHigh));
#endif
}

}  // namespace fastserve::gpu
