// Scratch memory on the device for the length of one operation.
#pragma once

#include <cstring>
#include <span>

#include "gpu/runtime.h"

namespace fastserve::gpu {

/// One growing block; what is taken from it is good until the next begin(). Since the stream is
/// ordered, an operation may take what the one before it still works on.
///
/// Threads: one caller at a time. Errors: an allocation that fails is reported to the runtime, and
/// begin() says false: the operation is then left out, and sync() tells why.
class Workspace {
 public:
  explicit Workspace(Runtime& runtime) : runtime_(runtime) {}

  /// Bytes that `n` elements take, for the sum that begin() wants.
  template <class T>
  static size_t room(size_t n) {
    return (n * sizeof(T) + kAlign - 1) / kAlign * kAlign;
  }
  /// What begin() takes of the card for so many bytes.
  static size_t grown(size_t bytes) { return bytes + bytes / 4; }
  /// begin() would give nothing back.
  bool has(size_t bytes) const { return bytes <= memory_.bytes(); }
  bool begin(size_t bytes) {
    used_ = 0;
    if (has(bytes)) return true;
    memory_ = Memory();  // first, so that both need not fit at once
    ++version_;
    Result<Memory> larger = Memory::allocate(runtime_, grown(bytes));
    if (!larger.ok()) {
      runtime_.report(larger.error());
      return false;
    }
    memory_ = std::move(larger).value();
    return true;
  }
  /// Another number when memory has been given back that captured work may use.
  uint64_t version() const { return version_; }
  template <class T>
  T* take(size_t n) {
    T* const taken = reinterpret_cast<T*>(static_cast<std::byte*>(memory_.data()) + used_);
    used_ += room<T>(n);
    FS_CHECK(used_ <= memory_.bytes());
    return taken;
  }
  /// Takes room for `host` and copies it in.
  template <class T>
  T* upload(std::span<const T> host) {
    T* const taken = take<T>(host.size());
    runtime_.copy_in(taken, host.data(), host.size_bytes());
    return taken;
  }

 private:
  static constexpr size_t kAlign = 256;
  Runtime& runtime_;
  Memory memory_;
  size_t used_ = 0;
  uint64_t version_ = 0;
};

}  // namespace fastserve::gpu
