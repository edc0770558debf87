// Gradient memory that is used again and again.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "model/device.h"

namespace fastserve {

/// The flat gradient of some microbatches, or a run of it. Whoever holds the last handle gives it
/// back.
class GradientBuffer {
 public:
  /// `first`: the element of the flat gradient that lies at the front. `member`: whose memory it is
  /// (TrainBackend::index()).
  explicit GradientBuffer(std::unique_ptr<DeviceBuffer> memory, size_t first = 0, int member = 0)
      : memory_(std::move(memory)), first_(first), member_(member) {}
  int member() const { return member_; }
  float* data() const { return static_cast<float*>(memory_->data()); }
  size_t elements() const { return memory_->bytes() / sizeof(float); }
  /// Where element `offset` of the flat gradient lies.
  float* at(size_t offset) const { return data() + (offset - first_); }
  bool covers(size_t begin, size_t end) const {
    return first_ <= begin && end <= first_ + elements();
  }

 private:
  std::unique_ptr<DeviceBuffer> memory_;
  size_t first_;
  int member_;
};
using GradientHandle = std::shared_ptr<GradientBuffer>;

/// Hands out gradient buffers and takes them back, so that a step allocates nothing.
///
/// Owns:    the idle buffers; a buffer in use may outlive the pool.
/// Threads: any.
class GradientPool {
 public:
  using Allocate = std::function<Result<std::unique_ptr<DeviceBuffer>>()>;
  /// `first`, `member`: as GradientBuffer's.
  explicit GradientPool(Allocate allocate, size_t first = 0, int member = 0)
      : state_(std::make_shared<State>(std::move(allocate), first, member)) {}

  /// A buffer with unspecified contents. kResourceExhausted when memory is out.
  Result<GradientHandle> take();
  /// Buffers ever made.
  size_t made() const;

 private:
  struct State {
    State(Allocate a, size_t f, int m) : allocate(std::move(a)), first(f), member(m) {}
    Allocate allocate;
    const size_t first;
    const int member;
    std::mutex mutex;
    std::vector<std::unique_ptr<GradientBuffer>> idle;
    size_t made = 0;
  };
  std::shared_ptr<State> state_;
};

}  // namespace fastserve
