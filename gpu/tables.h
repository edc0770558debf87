// Small tables of the host's that operations read again and again, kept on the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "gpu/runtime.h"

namespace fastserve::gpu {

/// Positions, tiles of attention and the like, which follow from a microbatch's shape: found again
/// by their content, so that a shape that comes back copies nothing, and can be captured.
///
/// Owns:     device memory for the tables asked for last.
/// Threads:  one caller at a time.
/// Promises: what get() gave holds that content until version() is another number; work that reads
///           it and is ordered before the call that changes the number reads the content, too.
/// Errors:   through Runtime::report; get() is null then. A table that is not there yet cannot be
///           had in a capture.
class Tables {
 public:
  /// `most`: tables that are kept. A training shape takes three at most.
  explicit Tables(Runtime& runtime, size_t most = 24) : runtime_(runtime), most_(most) {}

  /// Null for none.
  template <class T>
  const T* get(std::span<const T> host) {
    return static_cast<const T*>(find(std::as_bytes(host)));
  }
  uint64_t version() const { return version_; }

 private:
  struct Table {
    std::vector<std::byte> content;  // empty: the memory holds nothing of use
    Memory memory;
    uint64_t asked_for = 0;
  };

  const void* find(std::span<const std::byte> host);
  Table& place_for_another();

  Runtime& runtime_;
  const size_t most_;
  std::vector<Table> tables_;
  uint64_t version_ = 0, asked_ = 0;
};

}  // namespace fastserve::gpu
