// Gradient memory that is used again and again.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "model/device.h"

namespace fastserve {

/// The flat gradient of some microbatches. Whoever holds the last handle gives it back.
class GradientBuffer {
 public:
  explicit GradientBuffer(std::unique_ptr<DeviceBuffer> memory) : memory_(std::move(memory)) {}
  float* data() const { return static_cast<float*>(memory_->data()); }
  size_t elements() const { return memory_->bytes() / sizeof(float); }

 private:
  std::unique_ptr<DeviceBuffer> memory_;
};
using GradientHandle = std::shared_ptr<GradientBuffer>;

/// Hands out gradient buffers and takes them back, so that a step allocates nothing.
///
/// Owns:    the idle buffers; a buffer in use may outlive the pool.
/// Threads: any.
class GradientPool {
 public:
  using Allocate = std::function<Result<std::unique_ptr<DeviceBuffer>>()>;
  explicit GradientPool(Allocate allocate) : state_(std::make_shared<State>(std::move(allocate))) {}

  /// A buffer with unspecified contents. kResourceExhausted when memory is out.
  Result<GradientHandle> take();
  /// Buffers ever made.
  size_t made() const;

 private:
  struct State {
    explicit State(Allocate a) : allocate(std::move(a)) {}
    Allocate allocate;
    std::mutex mutex;
    std::vector<std::unique_ptr<GradientBuffer>> idle;
    size_t made = 0;
  };
  std::shared_ptr<State> state_;
};

}  // namespace fastserve
