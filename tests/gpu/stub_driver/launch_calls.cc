// Devices, errors, and the kernels that nvcc's code registers and starts.
#include "tests/gpu/stub_driver/device_description.h"
#include "tests/gpu/stub_driver/state.h"

namespace {

using stub_driver::device;
using stub_driver::state;

/// What <<<...>>> leaves for the call behind it.
struct Configuration {
  dim3 grid, block;
  size_t shared = 0;
  cudaStream_t stream = nullptr;
};
thread_local Configuration configured;
thread_local int current = 0;  // the calling thread's card

int attribute(cudaDeviceAttr which) {
  const auto number = [](const char* key, int64_t otherwise) {
    return static_cast<int>(device().number(key, otherwise));
  };
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor:
      return number("deviceVer", 900) / 100;
    case cudaDevAttrComputeCapabilityMinor:
      return number("deviceVer", 900) / 10 % 10;
    case cudaDevAttrMultiProcessorCount:
      return number("multiProcessorCount", 1);
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return number("maxSharedMemoryPerBlockOptin", 101376);
    default:
      return 0;
  }
}

}  // namespace

int stub_driver::current_card() { return current; }

extern "C" {

cudaError_t cudaSetDevice(int index) {
  STUB_CALL();
  current = index;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* index) {
  STUB_CALL();
  *index = current;
  return cudaSuccess;
}
/// Each card reaches those behind it at once, and itself never; back again it did already.
cudaError_t cudaDeviceCanAccessPeer(int* can, int card, int peer) {
  STUB_CALL();
  *can = card != peer ? 1 : 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned) {
  STUB_CALL();
  if (peer == current) return cudaErrorInvalidDevice;
  return peer < current ? cudaErrorPeerAccessAlreadyEnabled : cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  STUB_CALL();
  *value = attribute(which);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  STUB_CALL();
  *total = static_cast<size_t>(device().number("totalGlobalMem", 1 << 30));
  *free_bytes = *total / 2;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  std::lock_guard lock(state().mutex);
  const cudaError_t last = state().last;
  state().last = cudaSuccess;
  return last;
}
cudaError_t cudaPeekAtLastError() {
  std::lock_guard lock(state().mutex);
  return state().last;
}
const char* cudaGetErrorString(cudaError_t) { return "as the test's script says"; }
const char* cudaGetErrorName(cudaError_t) { return "cudaErrorScripted"; }

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  STUB_CALL();
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  STUB_CALL();
  std::lock_guard lock(state().mutex);
  state().launches++;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void**) {
  STUB_CALL();
  std::lock_guard lock(state().mutex);
  state().launches++;
  const bool early = config->numAttrs == 1 &&
                     config->attrs[0].id == cudaLaunchAttributeProgrammaticStreamSerialization;
  return early ? cudaSuccess : cudaErrorInvalidValue;
}

// What nvcc's code calls around main() and at <<<...>>>.
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, uint3*, uint3*, dim3*,
                            dim3*, int*) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  configured = {grid, block, shared, static_cast<cudaStream_t>(stream)};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configured.grid;
  *block = configured.block;
  *shared = configured.shared;
  *static_cast<cudaStream_t*>(stream) = configured.stream;
  return cudaSuccess;
}

}  // extern "C"
