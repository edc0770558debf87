// Starting a kernel, with nvcc or over the emulator.
#pragma once

#include <type_traits>

#include "gpu/runtime.h"
#include "gpu/simt/simt.h"

#if !defined(__CUDACC__)
#include "gpu/simt/emulated_runtime.h"
#endif

namespace fastserve::gpu {

struct Launch {
  const char* kernel;  ///< for errors
  dim3 grid, block;
  size_t shared_bytes = 0;
};

/// Starts `kernel` on the runtime's stream; a failure is kept for Runtime::sync(). An empty grid
/// starts nothing, nor does anything behind a failure.
template <class... Parameters, class... Arguments>
void launch(Runtime& runtime, const Launch& how, void (*kernel)(Parameters...),
            Arguments... arguments) {
  if (how.grid.x == 0 || how.grid.y == 0 || how.grid.z == 0 || runtime.failed()) return;
  const auto failed = [&](const std::string& what) {
    runtime.report({ErrorCode::kInternal,
                    "the kernel " + std::string(how.kernel) + " failed: " + what,
                    runtime.properties().name, ""});
  };
  if (how.shared_bytes > runtime.properties().shared_memory)
    return failed("it needs " + std::to_string(how.shared_bytes) + " bytes of shared memory");
#if defined(__CUDACC__)
  const auto stream = static_cast<cudaStream_t>(runtime.stream());  // makes the card current, too
  if (how.shared_bytes > 48 << 10) {
    const cudaError_t set =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, int(how.shared_bytes));
    if (set != cudaSuccess) return failed(cudaGetErrorString(set));
  }
  kernel<<<how.grid, how.block, how.shared_bytes, stream>>>(arguments...);
  const cudaError_t started = cudaGetLastError();
  if (started != cudaSuccess) failed(cudaGetErrorString(started));
#else
  auto& stream = *static_cast<simt::EmulatedStream*>(runtime.stream());
#if __has_builtin(__builtin_clear_padding)
  (__builtin_clear_padding(&arguments), ...);  // half an old pointer there would look like one
#endif
  if (!(stream.sees(&arguments, sizeof arguments) && ...))
    return failed("it is given memory of the host");
  const std::string wrong = stream.run(
      {how.kernel, how.grid, how.block, how.shared_bytes, [=] { kernel(arguments...); }});
  if (!wrong.empty()) failed(wrong);
#endif
}

}  // namespace fastserve::gpu
