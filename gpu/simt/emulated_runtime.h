// A GPU for tests on any machine: memory that the host cannot reach, and kernels run as fibers.
#pragma once

#include <atomic>
#include <memory>

#include "gpu/runtime.h"
#include "gpu/simt/block.h"
#include "gpu/simt/device_memory.h"

namespace fastserve::simt {

/// The runtime whose launches run every kernel to its end before they return. A kernel that breaks
/// a rule of the machine (a divergent barrier, memory past its end) is reported by sync(). What it
/// allocates the host cannot touch: see DeviceMemory.
std::unique_ptr<gpu::Runtime> make_emulated_runtime(const Options& options = {});

/// Behind StreamHandle when g++ compiles. Threads: any.
class EmulatedStream {
 public:
  EmulatedStream(const Options& options, DeviceMemory& memory)
      : options_(options), memory_(memory) {}
  /// Empty, or what is wrong with the kernel.
  std::string run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);
  /// A launch's argument holds no pointer that a card could not follow; with Options::own_memory.
  bool sees(const void* argument, size_t bytes) const;
  bool lost() const { return lost_; }

 private:
  const Options options_;
  DeviceMemory& memory_;
  Grid grids_;
  std::atomic<int64_t> started_ = 0;
  std::atomic<bool> lost_ = false;
};

}  // namespace fastserve::simt
