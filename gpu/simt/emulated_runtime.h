// A GPU for tests on any machine: host memory, and kernels run as fibers.
#pragma once

#include <memory>

#include "gpu/runtime.h"
#include "gpu/simt/block.h"

namespace fastserve::simt {

/// The runtime whose launches run every kernel to its end before they return. A kernel that breaks
/// a rule of the machine (a divergent barrier, memory past its end) is reported by sync().
std::unique_ptr<gpu::Runtime> make_emulated_runtime(const Options& options = {});

/// Behind StreamHandle when g++ compiles. Threads: any.
class EmulatedStream {
 public:
  explicit EmulatedStream(const Options& options) : options_(options) {}
  /// Empty, or what is wrong with the kernel.
  std::string run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

 private:
  const Options options_;
  Grid grids_;
};

}  // namespace fastserve::simt
