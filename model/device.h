// Where a model runs: memory, and the two families of operations.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "model/decode_ops.h"
#include "model/train_ops.h"

namespace fastserve {

/// Memory with one owner; 64-byte aligned and zeroed.
class DeviceBuffer {
 public:
  virtual ~DeviceBuffer() = default;
  virtual void* data() = 0;
  virtual size_t bytes() const = 0;
};

/// One processor's share that one actor drives: some CPU lanes, or a GPU.
///
/// Threads: one caller at a time. Promises: see train_ops.h and decode_ops.h.
class Device {
 public:
  virtual ~Device() = default;

  /// "cpu avx512-bf16, 2 lanes": what was chosen, for logs.
  virtual std::string description() const = 0;
  /// Names everything that may change bits (ISA path, precision emulation); two devices mix in one
  /// exact job only when these are equal.
  virtual std::string numerics_id() const = 0;

  /// kResourceExhausted with the size when it cannot be had.
  virtual Result<std::unique_ptr<DeviceBuffer>> allocate(size_t bytes) = 0;
  /// True: allocate() gives memory of the host, which anybody may read and write. False: only the
  /// device's operations and the copies below reach it; the host must not follow a pointer to it.
  virtual bool host_memory() const = 0;
  /// Bytes that allocate() can still give.
  virtual uint64_t available_memory() const = 0;
  /// Memory of the host that copies reach fastest (pinned, for a GPU). May outlive the device.
  virtual Result<std::unique_ptr<DeviceBuffer>> allocate_host(size_t bytes) = 0;
  virtual void copy_in(void* device, const void* host, size_t bytes) = 0;
  virtual void copy_out(void* host, const void* device, size_t bytes) = 0;
  /// Waits for all ordered work; an asynchronous failure surfaces here.
  virtual Status sync() = 0;

  virtual std::unique_ptr<TrainOps> make_train_ops(Precision precision) = 0;
  virtual std::unique_ptr<DecodeOps> make_decode_ops() = 0;
};

/// Makes one device, of `lanes` lanes where it has such. All that it makes have one numerics_id.
using DeviceFactory = std::function<Result<std::unique_ptr<Device>>(int lanes)>;

}  // namespace fastserve
