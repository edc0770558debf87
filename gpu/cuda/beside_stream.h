// Copies that go on beside a card's work, on a stream of their own.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <string>

#include "gpu/cuda/event_line.h"
#include "model/device_parts.h"

namespace fastserve::gpu {

/// The copies of gpu/runtime.h that have "beside" in their name, and others out that are waited for
/// later.
///
/// Owns:    the stream. Threads: any; the card is the calling thread's. Who waits keeps nobody from
///          copying.
/// Errors:  each code that is none of success goes to `keep`, with what was being done.
class BesideStream {
 public:
  explicit BesideStream(EventLine::Keep keep) : keep_(keep), events_(std::move(keep)) {}
  BesideStream(const BesideStream&) = delete;
  ~BesideStream();

  cudaError_t open() { return cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking); }
  /// Behind what is on `work` now. The mark of the copy, or 0 if it cannot be had: zeros.
  DeviceCopyMark copy_out(cudaStream_t work, void* host, const void* device, size_t bytes);
  /// The same on `work` itself.
  DeviceCopyMark copy_out_on(cudaStream_t work, void* host, const void* device, size_t bytes);
  /// Before what will be on `work`.
  void copy_in(cudaStream_t work, void* device, const void* host, size_t bytes);
  /// Where `failed` the host gets zeros: nobody computes with what happened to lie there.
  void wait_for(DeviceCopyMark mark, const std::function<bool()>& failed);
  /// Waits for both directions.
  void sync(const std::function<bool()>& failed);

 private:
  DeviceCopyMark copy_out(cudaStream_t work, cudaStream_t on, void* host, const void* device,
                          size_t bytes);
  void keep(cudaError_t code, const std::string& doing) {
    if (code != cudaSuccess) keep_(code, doing);
  }

  const EventLine::Keep keep_;
  cudaStream_t stream_ = nullptr;
  EventLine events_;  // behind copies out
};

}  // namespace fastserve::gpu
