// Memory and streams: made, counted, given back.
#include <chrono>
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

/// What a card refuses while a stream's work is recorded.
cudaError_t outside_capture() {
  std::lock_guard lock(state().mutex);
  return state().captures == nullptr ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
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
  if (outside_capture() != cudaSuccess) return outside_capture();
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
cudaError_t cudaMemcpyPeerAsync(void* to, int into, const void* from, int out_of, size_t bytes,
                                cudaStream_t) {
  STUB_CALL();
  if (outside_capture() != cudaSuccess) return outside_capture();
  if (into == out_of) return cudaErrorInvalidDevice;
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
  return outside_capture();
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  STUB_CALL();
  return make(state().events, reinterpret_cast<void**>(event));
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return forget(state().events, event, stub_driver::enter(__func__));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
  STUB_CALL();
  return outside_capture();
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
  STUB_CALL();
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) {
  STUB_CALL();
  std::lock_guard lock(state().mutex);
  return state().last = state().stalled ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  STUB_CALL();
  {
    std::unique_lock lock(state().mutex);
    state().waiting++;
    state().reached.wait_for(lock, std::chrono::seconds(5), [] { return !state().stalled; });
    state().waiting--;
  }
  return outside_capture();
}

// A graph here holds nothing: what was recorded has been done, as far as copies and fills go.
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  STUB_CALL();
  if (mode != cudaStreamCaptureModeThreadLocal) return cudaErrorInvalidValue;
  std::lock_guard lock(state().mutex);
  if (state().captures != nullptr) return cudaErrorIllegalState;
  state().captures = stream;
  return cudaSuccess;
}
/// Ends the capture even where it is scripted to fail, as a card does with one that went wrong.
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  {
    std::lock_guard lock(state().mutex);
    if (state().captures != stream) return cudaErrorIllegalState;
    state().captures = nullptr;
  }
  STUB_CALL();
  return make(state().graphs, reinterpret_cast<void**>(graph));
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  STUB_CALL();
  if (graph == nullptr) return cudaErrorInvalidValue;
  return make(state().graphs, reinterpret_cast<void**>(made));
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) {
  STUB_CALL();
  return outside_capture();
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return forget(state().graphs, graph, stub_driver::enter(__func__));
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  return forget(state().graphs, graph, stub_driver::enter(__func__));
}

}  // extern "C"
