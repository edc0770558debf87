// Events of one card that are used again and again.
#pragma once

#include <cuda_runtime_api.h>

#include <mutex>
#include <vector>

namespace fastserve::gpu {

/// Owns the events that were given back. Threads: any; the card is the calling thread's.
class EventPool {
 public:
  EventPool() = default;
  EventPool(const EventPool&) = delete;
  ~EventPool() {
    for (const cudaEvent_t event : idle_) cudaEventDestroy(event);
  }
  /// Null, and why in `code`, where none can be made.
  cudaEvent_t take(cudaError_t& code) {
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        const cudaEvent_t event = idle_.back();
        idle_.pop_back();
        return event;
      }
    }
    cudaEvent_t event = nullptr;
    code = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    return code == cudaSuccess ? event : nullptr;
  }
  /// Also one that a stream waits for: that has its place in the stream.
  void give_back(cudaEvent_t event) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(event);
  }

 private:
  std::mutex mutex_;
  std::vector<cudaEvent_t> idle_;  // guarded by mutex_
};

}  // namespace fastserve::gpu
