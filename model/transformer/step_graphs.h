// Steps that recur, captured once and started as one.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>

#include "model/device.h"

namespace fastserve {

/// What the operations of a decode step were told beforehand.
struct StepShape {
  int rows = 0, reach = 0;
  bool draws = false;
  bool operator==(const StepShape&) const = default;
};

/// Owns:     the graphs of the shapes used last.
/// Threads:  one caller. Device and operations must outlive it.
/// Promises: what a step computes does not depend on whether it runs as a graph.
class StepGraphs {
 public:
  StepGraphs(Device& device, const DecodeOps& ops, int most)
      : device_(device), ops_(ops), most_(static_cast<size_t>(most)) {}

  /// Does `work`, which must start the same operations each time it is given for this shape: at
  /// once the first time, captured the second, from the graph then. Where a graph cannot be had,
  /// always at once. Errors: the device's.
  Status run(const StepShape& shape, const std::function<void()>& work);

  int64_t started() const { return started_; }

 private:
  struct Entry {
    StepShape shape;
    std::unique_ptr<DeviceGraph> graph;
    uint64_t scratch = 0;
  };
  Status capture(Entry& entry, const std::function<void()>& work);

  Device& device_;
  const DecodeOps& ops_;
  size_t most_;
  std::list<Entry> entries_;  // used last first
  int64_t started_ = 0;
};

}  // namespace fastserve
