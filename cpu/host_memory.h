// Large blocks of host memory, refused with a reason when the machine cannot hold them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/result.h"

namespace fastserve {

/// Bytes this process may still take: the machine's available memory and its cgroup's limit.
uint64_t available_memory();

/// Zeroed memory with one owner. From 2 MiB on it is aligned to 2 MiB and asks for huge pages;
/// below, to 64 bytes. Pages are zeroed when first touched. Move-only.
class HostMemory {
 public:
  HostMemory() = default;
  /// kResourceExhausted with both sizes when it does not fit; `what` names the thing: "the KV
  /// cache".
  static Result<HostMemory> allocate(size_t bytes, const char* what);
  HostMemory(HostMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        mapped_(std::exchange(other.mapped_, 0)) {}
  HostMemory& operator=(HostMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapped_, other.mapped_);
    return *this;
  }
  ~HostMemory();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  size_t mapped_ = 0;  // bytes of the map; 0: from the heap
};

}  // namespace fastserve
