// A scratch array that only grows.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

#include "base/check.h"

namespace fastserve {

/// 64-byte aligned room for at least the largest n ever reserved; growing forgets the contents.
template <class T>
class AlignedArray {
 public:
  void reserve(size_t n) {
    if (n <= size_) return;
    data_.reset();
    size_ = n + n / 4;
    data_.reset(static_cast<T*>(std::aligned_alloc(64, (size_ * sizeof(T) + 63) / 64 * 64)));
    FS_CHECK(data_ != nullptr);
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

}  // namespace fastserve
