// Memory of the host that every card copies from and to without a detour.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <utility>

#include "gpu/pinned_ranges.h"
#include "model/device_parts.h"

namespace fastserve::gpu {

/// Owns: what cudaHostAlloc() gave, and its entry in `ranges`.
class PinnedMemory final : public DeviceBuffer {
 public:
  PinnedMemory(void* data, size_t bytes, std::shared_ptr<PinnedRanges> ranges)
      : data_(data), bytes_(bytes), ranges_(std::move(ranges)) {
    ranges_->add(data_, bytes_);
  }
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  ~PinnedMemory() override {
    ranges_->remove(data_);
    cudaFreeHost(data_);
  }
  void* data() override { return data_; }
  size_t bytes() const override { return bytes_; }

 private:
  void* data_;
  size_t bytes_;
  const std::shared_ptr<PinnedRanges> ranges_;
};

}  // namespace fastserve::gpu
