// What a device hands out: memory, captured work, and names for places in its work.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastserve {

/// Memory with one owner; 64-byte aligned and zeroed.
class DeviceBuffer {
 public:
  virtual ~DeviceBuffer() = default;
  virtual void* data() = 0;
  virtual size_t bytes() const = 0;
};

/// Work that was captured and can be started again as one: operations and copies with the arguments
/// that they had. What the arguments point to is read and written anew at each start.
///
/// Owns: nothing of what the work uses, which must outlive it. Gone before its device is.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
};

/// A place in a device's ordered work; 0 lies before all of it.
using DeviceTicket = uint64_t;

/// Names a copy that goes on beside the device's work; 0: one that is done.
using DeviceCopyMark = uint64_t;

}  // namespace fastserve
