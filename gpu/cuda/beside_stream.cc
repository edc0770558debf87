#include "gpu/cuda/beside_stream.h"

#include <cstring>

#include "base/file.h"

namespace fastserve::gpu {

BesideStream::~BesideStream() {
  if (stream_ == nullptr) return;
  cudaStreamSynchronize(stream_);
  cudaStreamDestroy(stream_);
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
  const cudaEvent_t done = events_.take();
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
  return events_.add(done, {static_cast<std::byte*>(host), bytes});
}

void BesideStream::copy_in(cudaStream_t work, void* device, const void* host, size_t bytes) {
  const cudaEvent_t there = events_.take();
  if (there == nullptr) return;
  cudaError_t code = cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_);
  if (code == cudaSuccess) code = cudaEventRecord(there, stream_);
  if (code == cudaSuccess) code = cudaStreamWaitEvent(work, there, 0);
  keep(code, "copying " + human_bytes(bytes) + " to the card");
  events_.give_back(there);  // who waits for it has its place in the other stream
}

void BesideStream::wait_for(DeviceCopyMark mark, const std::function<bool()>& failed) {
  events_.wait_for(mark, "copies from the card", [&](std::span<std::byte> host) {
    if (failed()) std::memset(host.data(), 0, host.size());
  });
}

void BesideStream::sync(const std::function<bool()>& failed) {
  keep(cudaStreamSynchronize(stream_), "copies beside the card's work");
  wait_for(~DeviceCopyMark{0}, failed);
}

}  // namespace fastserve::gpu
