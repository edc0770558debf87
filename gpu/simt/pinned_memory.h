// Memory of the host that asynchronous copies read, and whether it is left alone while they may.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "gpu/pinned_ranges.h"
#include "gpu/runtime.h"

namespace fastserve::simt {

/// A card reads the source of an asynchronous copy any time before the copy's ticket is waited
/// for. The emulator has copied long before, and looks at the wait whether that shows.
///
/// Owns:    the list of what is pinned, shared with the memory, which may outlive it.
/// Threads: any.
class PinnedMemory {
 public:
  PinnedMemory() : ranges_(std::make_shared<gpu::PinnedRanges>()) {}
  std::unique_ptr<DeviceBuffer> allocate(size_t bytes) const;
  bool holds(const void* data, size_t bytes) const { return ranges_->hold(data, bytes); }

  /// A copy out of `data` has been started. `anywhere`: it need not be pinned, here or at all.
  gpu::Ticket started(const void* data, size_t bytes, bool anywhere = false);
  gpu::Ticket last();
  /// Copies up to the ticket are done. Empty, or what their sources suffered meanwhile.
  std::string finish(gpu::Ticket ticket);
  std::string finish_all() { return finish(~gpu::Ticket{0}); }

 private:
  class Block;
  struct Copy {
    gpu::Ticket ticket;
    const void* data;
    size_t bytes;
    uint64_t seen;  ///< a hash of the bytes
    bool anywhere;
  };

  const std::shared_ptr<gpu::PinnedRanges> ranges_;
  std::mutex mutex_;  // guards what follows
  std::vector<Copy> copies_;
  gpu::Ticket last_ = 0;
};

}  // namespace fastserve::simt
