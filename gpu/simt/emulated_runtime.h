// A GPU for tests on any machine: memory that the host cannot reach, and kernels run as fibers.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gpu/runtime.h"
#include "gpu/simt/block.h"
#include "gpu/simt/device_memory.h"

namespace fastserve::simt {

/// The runtime whose launches run every kernel to its end before they return. A kernel that breaks
/// a rule of the machine (a divergent barrier, memory past its end) is reported by sync(). What it
/// allocates the host cannot touch: see DeviceMemory.
std::unique_ptr<gpu::Runtime> make_emulated_runtime(const Options& options = {});

/// What a link needs of a card: those of make_emulated_runtime() are.
class LinkedCard : public gpu::Runtime {
 public:
  virtual DeviceMemory& memory() = 0;
  virtual Traffic* traffic() = 0;  ///< null: nobody counts
  /// The calling thread's work is being captured, and `doing` cannot be: kept as a failure.
  virtual bool refused(const char* doing) = 0;
  /// Starts an empty kernel. False, and reported, when the card is lost.
  virtual bool start_kernel(const char* name) = 0;
};

/// One kernel as it was asked for, with its arguments inside the body.
struct EmulatedLaunch {
  const char* kernel;
  dim3 grid, block;
  size_t shared_bytes;
  std::function<void()> body;
  bool together = false;  ///< its blocks may meet
};

/// What was captured: each part with the memory that it reaches.
struct EmulatedGraph final : gpu::Graph {
  struct Part {
    std::string name;
    std::function<std::string()> run;        ///< empty, or what is wrong
    std::map<const void*, uint64_t> memory;  ///< the allocations that pointers lay in
  };
  std::vector<Part> parts;
};

/// Behind StreamHandle when g++ compiles. Threads: any; what is captured is one thread's work, and
/// that of the others is done meanwhile.
class EmulatedStream {
 public:
  EmulatedStream(const Options& options, DeviceMemory& memory)
      : options_(options), memory_(memory) {}
  /// Empty, or what is wrong with the kernel, which is kept instead while work is captured.
  std::string run(EmulatedLaunch launch);
  /// A launch's argument holds no pointer that a card could not follow; with Options::own_memory.
  bool sees(const void* argument, size_t bytes);
  bool lost() const { return lost_; }

  /// Whether the calling thread's work is being captured.
  bool captures() const { return capturer_ == std::this_thread::get_id(); }
  /// Waits while another thread's is.
  void begin_capture();
  std::unique_ptr<EmulatedGraph> end_capture();
  /// `memory` is what the part reaches, beside what sees() was shown.
  void capture(std::string name, std::function<std::string()> part, const void* memory);
  /// Empty, or which part of the graph went wrong, and how.
  std::string run(const EmulatedGraph& graph) const;

 private:
  std::string run_now(const EmulatedLaunch& launch);

  const Options options_;
  DeviceMemory& memory_;
  Grid grids_;
  std::atomic<int64_t> started_ = 0;
  std::atomic<bool> lost_ = false;
  std::mutex capturing_;  // held from begin_capture() to end_capture()
  std::atomic<std::thread::id> capturer_;
  std::unique_ptr<EmulatedGraph> graph_;     // the capturer's
  std::map<const void*, uint64_t> reached_;  // by the launch whose arguments it has shown
};

}  // namespace fastserve::simt
