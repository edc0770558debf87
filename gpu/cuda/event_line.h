// Points in a card's work that several threads wait for.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <span>
#include <string>

#include "gpu/cuda/event_pool.h"

namespace fastserve::gpu {

/// A card's events: those that are recorded, numbered from 1 in the order of add(), and idle ones.
///
/// Owns:    the events. Threads: any, the card is the calling thread's. Who waits for the card
///          keeps nobody from adding, and nobody who waits for less.
/// Errors:  each code that is none of success goes to `keep`, with what was being done.
class EventLine {
 public:
  using Keep = std::function<void(cudaError_t, const std::string& doing)>;
  explicit EventLine(Keep keep) : keep_(std::move(keep)) {}
  EventLine(const EventLine&) = delete;
  ~EventLine();

  /// For add() or give_back(). Null where none can be made.
  cudaEvent_t take();
  void give_back(cudaEvent_t event) { idle_.give_back(event); }
  /// The number of an event that has been recorded behind work, some of which writes to `host`.
  uint64_t add(cudaEvent_t event, std::span<std::byte> host = {});
  /// Returns once the work before all events up to that number is done, and `passed`, if any, has
  /// been told of what each wrote to: once, by whichever thread's wait was first.
  void wait_for(uint64_t number, const char* doing,
                const std::function<void(std::span<std::byte> host)>& passed = nullptr);

 private:
  struct Recorded {
    uint64_t number;
    cudaEvent_t event;
    std::span<std::byte> host;
  };
  void keep(cudaError_t code, const std::string& doing) {
    if (code != cudaSuccess) keep_(code, doing);
  }

  const Keep keep_;
  EventPool idle_;
  std::mutex mutex_;               // guards what follows; never held while the card is waited for
  std::deque<Recorded> recorded_;  // that nobody has waited for
  uint64_t last_ = 0;
};

}  // namespace fastserve::gpu
