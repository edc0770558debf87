// Copies that go on beside a card's work, on a stream of their own.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "model/device_parts.h"

namespace fastserve::gpu {

/// The copies of gpu/runtime.h that have "beside" in their name, and others out that are waited for
/// later.
///
/// Owns:    the stream and its events. Threads: any; the card is the calling thread's.
/// Errors:  each code that is none of success goes to `keep`, with what was being done.
class BesideStream {
 public:
  using Keep = std::function<void(cudaError_t, const std::string& doing)>;
  explicit BesideStream(Keep keep) : keep_(std::move(keep)) {}
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
  struct Copy {
    DeviceCopyMark mark;
    void* host;
    size_t bytes;
    cudaEvent_t done;
  };
  /// Null where none can be made.
  cudaEvent_t take_event();
  DeviceCopyMark copy_out(cudaStream_t work, cudaStream_t on, void* host, const void* device,
                          size_t bytes);
  void keep(cudaError_t code, const std::string& doing) {
    if (code != cudaSuccess) keep_(code, doing);
  }

  const Keep keep_;
  cudaStream_t stream_ = nullptr;
  std::mutex mutex_;         // guards what follows
  std::deque<Copy> copies_;  // out, that nobody has waited for
  std::vector<cudaEvent_t> idle_;
  DeviceCopyMark last_ = 0;
};

}  // namespace fastserve::gpu
