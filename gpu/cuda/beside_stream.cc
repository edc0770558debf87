#include "gpu/cuda/beside_stream.h"

#include <cstring>

#include "base/file.h"

namespace fastserve::gpu {

BesideStream::~BesideStream() {
  if (stream_ != nullptr) {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  for (const Copy& copy : copies_) cudaEventDestroy(copy.done);
  for (const cudaEvent_t event : idle_) cudaEventDestroy(event);
}

cudaEvent_t BesideStream::take_event() {
  cudaEvent_t event = nullptr;
  if (idle_.empty()) {
    keep(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
    return event;
  }
  event = idle_.back();
  idle_.pop_back();
  return event;
}

DeviceCopyMark BesideStream::copy_out(cudaStream_t work, void* host, const void* device,
                                      size_t bytes) {
  return copy_out(work, stream_, host, device, bytes);
}

DeviceCopyMark BesideStream::copy_out_on(cudaStream_t work, void* host, const void* device,
                                         size_t bytes) {
  return copy_out(work, work, host, device, bytes);
}

/// Behind what is on `work`, by `on`.
DeviceCopyMark BesideStream::copy_out(cudaStream_t work, cudaStream_t on, void* host,
                                      const void* device, size_t bytes) {
  const std::lock_guard lock(mutex_);
  const cudaEvent_t done = take_event();
  if (done == nullptr) {
    std::memset(host, 0, bytes);
    return 0;
  }
  cudaError_t code = cudaSuccess;
  if (on != work) {  // the event says first that the source is there, then that the copy is
    code = cudaEventRecord(done, work);
    if (code == cudaSuccess) code = cudaStreamWaitEvent(on, done, 0);
  }
  if (code == cudaSuccess) code = cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, on);
  if (code == cudaSuccess) code = cudaEventRecord(done, on);
  keep(code, "copying " + human_bytes(bytes) + " from the card");
  copies_.push_back({++last_, host, bytes, done});
  return last_;
}

void BesideStream::copy_in(cudaStream_t work, void* device, const void* host, size_t bytes) {
  const std::lock_guard lock(mutex_);
  const cudaEvent_t there = take_event();
  if (there == nullptr) return;
  cudaError_t code = cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_);
  if (code == cudaSuccess) code = cudaEventRecord(there, stream_);
  if (code == cudaSuccess) code = cudaStreamWaitEvent(work, there, 0);
  keep(code, "copying " + human_bytes(bytes) + " to the card");
  idle_.push_back(there);  // who waits for it has its place in the other stream
}

void BesideStream::wait_for(DeviceCopyMark mark, const std::function<bool()>& failed) {
  const std::lock_guard lock(mutex_);
  for (; !copies_.empty() && copies_.front().mark <= mark; copies_.pop_front()) {
    const Copy& copy = copies_.front();
    keep(cudaEventSynchronize(copy.done), "copies from the card");
    if (failed()) std::memset(copy.host, 0, copy.bytes);
    idle_.push_back(copy.done);
  }
}

void BesideStream::sync(const std::function<bool()>& failed) {
  keep(cudaStreamSynchronize(stream_), "copies beside the card's work");
  wait_for(~DeviceCopyMark{0}, failed);
}

}  // namespace fastserve::gpu
