// A stand-in for the CUDA runtime: one GPU whose memory is the host's and whose kernels do nothing.
//
// The plugin's own objects are linked with it instead of with NVIDIA's runtime, so that their code
// can be taken through each failure on a machine without a GPU. What a call would do to the card is
// not modelled beyond what that code can see: copies copy, fills fill, launches are counted.
// (NVIDIA's runtime itself runs over NVIDIA's driver alone; libcuda.so.1 beside this is for what
// asks the driver directly: the inventory.)
#pragma once

#include <string>
#include <vector>

namespace stub_driver {

/// What has been made and not yet given back.
struct Live {
  int allocations = 0, streams = 0, events = 0, graphs = 0;
  bool none() const { return allocations + streams + events + graphs == 0; }
  std::string text() const {
    return std::to_string(allocations) + " allocations, " + std::to_string(streams) + " streams, " +
           std::to_string(events) + " events, " + std::to_string(graphs) + " graphs";
  }
};

/// What a test may ask of the stand-in inside a plugin that it has opened.
class Control {
 public:
  virtual ~Control() = default;
  virtual Live live() const = 0;
  /// Names of the calls since reset() that may fail, in order: "cudaMalloc", "cudaLaunchKernel"...
  virtual std::vector<std::string> calls() const = 0;
  virtual int launches() const = 0;
  /// The `nth` of those calls (from 0) after reset() returns `code`, once. With `lost`, so does
  /// every later one, as when the card has fallen off the bus.
  virtual void fail(int nth, int code, bool lost) = 0;
  /// From now on no event is reached, as behind a kernel that waits for ever; until reset(). Who
  /// waits for one waits until then, or for five seconds, so that a test ends.
  virtual void stall() = 0;
  /// Threads that wait so.
  virtual int waiting() const = 0;
  /// No failure scripted, nothing counted, the card is back. What lives stays counted.
  virtual void reset() = 0;
};

/// The plugin's symbol that returns it: Control* stub_driver_control().
inline constexpr const char* kControlSymbol = "stub_driver_control";

}  // namespace stub_driver
