// Memory and streams: made, counted, given back.
#include <cstdlib>
#include <cstring>

#include "tests/gpu/stub_driver/state.h"

namespace {

using stub_driver::state;

// Handles are addresses of counted bytes: unlike one another, and of nothing else.
template <class Handle>
cudaError_t make(std::set<const void*>& kept, Handle* out) {
  void* handle = std::malloc(1);
  std::lock_guard lock(state().mutex);
  kept.insert(handle);
  *out = static_cast<Handle>(handle);
  return cudaSuccess;
}

/// Given back even where the call is scripted to fail: its maker has done what it can.
cudaError_t forget(std::set<const void*>& kept, const void* handle, cudaError_t result) {
  std::lock_guard lock(state().mutex);
  if (kept.erase(handle) == 0) return cudaErrorInvalidResourceHandle;
  std::free(const_cast<void*>(handle));
  return result;
}

cudaError_t allocate(std::map<const void*, size_t>& kept, size_t bytes, void** out) {
  void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(memory, 0xA5, bytes);  // whatever a card's memory held before
  std::lock_guard lock(state().mutex);
  kept[memory] = bytes;
  *out = memory;
  return cudaSuccess;
}

cudaError_t release(std::map<const void*, size_t>& kept, void* memory, cudaError_t result) {
  if (memory == nullptr) return cudaSuccess;
  std::lock_guard lock(state().mutex);
  if (kept.erase(memory) == 0) return cudaErrorInvalidValue;
  std::free(memory);
  return result;
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  STUB_CALL();
  return allocate(state().allocations, bytes, pointer);
}
cudaError_t cudaMallocManaged(void** pointer, size_t bytes, unsigned) {
  STUB_CALL();
  return allocate(state().allocations, bytes, pointer);
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  STUB_CALL();
  return allocate(state().allocations, bytes, pointer);
}
cudaError_t cudaFreeHost(void* pointer) {
  return release(state().allocations, pointer, stub_driver::enter(__func__));
}
cudaError_t cudaFree(void* pointer) {
  return release(state().allocations, pointer, stub_driver::enter(__func__));
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  STUB_CALL();
  std::memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  STUB_CALL();
  std::memset(to, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  STUB_CALL();
  return make(state().streams, reinterpret_cast<void**>(stream));
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return forget(state().streams, stream, stub_driver::enter(__func__));
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  STUB_CALL();
  return cudaSuccess;
}

}  // extern "C"
