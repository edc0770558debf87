// NVIDIA's libraries: opened when they are there, never linked.
#pragma once

#include <string>

#include "base/result.h"

namespace fastserve::gpu {

/// A library that stays in the process. Copyable.
class SharedLibrary {
 public:
  /// "libcublasLt.so.13": in $FASTSERVE_CUDA_LIBRARIES (folders with colons between), where the
  /// system looks, in the toolkit's folders. kNotFound with the linker's words.
  static Result<SharedLibrary> open(const std::string& name);

  /// kUnsupported naming the symbol.
  Result<void*> symbol(const char* name) const;
  /// The file it was loaded from.
  std::string path() const;

  /// Fills a function pointer of a table.
  template <class Function>
  Status fill(Function& function, const char* name) const {
    FS_ASSIGN(void* found, symbol(name));
    function = reinterpret_cast<Function>(found);
    return {};
  }

 private:
  SharedLibrary(void* handle, std::string name) : handle_(handle), name_(std::move(name)) {}
  void* handle_;
  std::string name_;
};

/// "13.1.0"
std::string version_text(int major, int minor, int patch);

}  // namespace fastserve::gpu
