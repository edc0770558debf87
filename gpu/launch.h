// Starting a kernel, with nvcc or over the emulator.
#pragma once

#include <algorithm>
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

#if defined(__CUDACC__)
/// A card of this capability runs code that was compiled for its like, and so waits where the
/// source says wait_for_previous(): code for older cards does not.
constexpr bool chains_on(int major) {
#if defined(__CUDA_ARCH_LIST__)
  for (const int compiled : {__CUDA_ARCH_LIST__})
    if (major >= 9 && compiled / 100 == major) return true;
#endif
  return false;
}
#endif

/// See launch(), launch_chained() and launch_together().
enum class LaunchKind : uint8_t { kAlone, kChained, kTogether };

template <class... Parameters, class... Arguments>
void launch_as(LaunchKind kind, Runtime& runtime, const Launch& how, void (*kernel)(Parameters...),
               Arguments... arguments) {
  const bool chained = kind == LaunchKind::kChained, together = kind == LaunchKind::kTogether;
  if (how.grid.x == 0 || how.grid.y == 0 || how.grid.z == 0 || runtime.failed()) return;
  const auto failed = [&](const std::string& what) {
    runtime.report({ErrorCode::kInternal,
                    "the kernel " + std::string(how.kernel) + " failed: " + what,
                    runtime.properties().name, ""});
  };
  if (how.shared_bytes > runtime.properties().shared_memory)
    return failed("it needs " + std::to_string(how.shared_bytes) + " bytes of shared memory");
#if defined(__CUDACC__)
  const bool early = chained && runtime.in_chain() && chains_on(runtime.properties().major);
  const auto stream = static_cast<cudaStream_t>(runtime.stream());  // makes the card current, too
  if (chained || how.shared_bytes > 48 << 10) {
    const auto* const address = reinterpret_cast<const void*>(kernel);
    const cudaError_t set = runtime.let_have(address, std::max(how.shared_bytes, size_t{1}), [&] {
      // A multiprocessor that has to move the border between shared memory and cache finishes what
      // it runs first: the links of a chain do not differ in it.
      const cudaError_t split =
          chained ? cudaFuncSetAttribute(address, cudaFuncAttributePreferredSharedMemoryCarveout,
                                         cudaSharedmemCarveoutMaxShared)
                  : cudaSuccess;
      if (split != cudaSuccess || how.shared_bytes <= 48 << 10) return split;
      return cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  int(how.shared_bytes));
    });
    if (set != cudaSuccess) return failed(cudaGetErrorString(set));
  }
  cudaError_t started;
  if (early || together) {
    cudaLaunchAttribute attribute{};
    if (together) {
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    } else {
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = how.grid;
    config.blockDim = how.block;
    config.dynamicSmemBytes = how.shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    started = cudaLaunchKernelEx(&config, kernel, arguments...);
  } else {
    kernel<<<how.grid, how.block, how.shared_bytes, stream>>>(arguments...);
    started = cudaGetLastError();
  }
  if (started != cudaSuccess) return failed(cudaGetErrorString(started));
#else
  auto& stream = *static_cast<simt::EmulatedStream*>(runtime.stream());
#if __has_builtin(__builtin_clear_padding)
  (__builtin_clear_padding(&arguments), ...);  // half an old pointer there would look like one
#endif
  if (!(stream.sees(&arguments, sizeof arguments) && ...))
    return failed("it is given memory of the host");
  const std::string wrong = stream.run({how.kernel, how.grid, how.block, how.shared_bytes,
                                        [=] {
                                          kernel(arguments...);
                                          if (chained) simt::check_waited();
                                        },
                                        together});
  if (!wrong.empty()) failed(wrong);
#endif
  if (chained) runtime.continue_chain();
}

/// Starts `kernel` on the runtime's stream; a failure is kept for Runtime::sync(). An empty grid
/// starts nothing, nor does anything behind a failure.
template <class... Parameters, class... Arguments>
void launch(Runtime& runtime, const Launch& how, void (*kernel)(Parameters...),
            Arguments... arguments) {
  launch_as(LaunchKind::kAlone, runtime, how, kernel, arguments...);
}

/// The same for a kernel that keeps the promises of wait_for_previous(): behind another such one it
/// may begin before that one is done, where the card can.
template <class... Parameters, class... Arguments>
void launch_chained(Runtime& runtime, const Launch& how, void (*kernel)(Parameters...),
                    Arguments... arguments) {
  launch_as(LaunchKind::kChained, runtime, how, kernel, arguments...);
}

/// The same for a kernel whose blocks meet by sync_grid(): all of them are there at once. It fails
/// when there are more than the card runs at once; a block a multiprocessor is not too many.
template <class... Parameters, class... Arguments>
void launch_together(Runtime& runtime, const Launch& how, void (*kernel)(Parameters...),
                     Arguments... arguments) {
  launch_as(LaunchKind::kTogether, runtime, how, kernel, arguments...);
}

}  // namespace fastserve::gpu
