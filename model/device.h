// Where a model runs: memory, and the two families of operations.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "base/log.h"
#include "model/decode_ops.h"
#include "model/device_parts.h"
#include "model/train_ops.h"

namespace fastserve {

/// What its host wants of the graphs that passes and steps make on a device.
struct GraphUse {
  bool wanted = true;  ///< false: everything is started by itself
  Log log = {};        ///< told once that there are, or why not
  std::shared_ptr<std::atomic<int64_t>> started = nullptr;  ///< counts them, when set
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
  /// Of these, what libraries may take for themselves while a training pass is at work.
  virtual uint64_t library_memory() const { return 0; }
  /// Memory of the host that copies reach fastest (pinned, for a GPU). May outlive the device.
  virtual Result<std::unique_ptr<DeviceBuffer>> allocate_host(size_t bytes) = 0;
  /// True: these bytes lie in memory of allocate_host() that is pinned. What is told to load from
  /// there copies from where they lie, at the link's speed, and reads them until it says that it is
  /// done: so long they must stay as they are. False also where allocate_host() had to give other
  /// memory.
  virtual bool pinned(const void* /*host*/, size_t /*bytes*/) const { return false; }
  virtual void copy_in(void* device, const void* host, size_t bytes) = 0;
  /// Returns at once. `pinned` lies in memory of allocate_host(), which stays as it is, and is not
  /// freed, until wait() has returned for the ticket, or a sync() or copy_out() that came later.
  virtual DeviceTicket copy_in_async(void* device, const void* pinned, size_t bytes) {
    copy_in(device, pinned, bytes);
    return 0;
  }
  /// All ordered work so far. Here: it is done.
  virtual DeviceTicket mark() { return 0; }
  /// Returns when the work up to the ticket is done.
  virtual void wait(DeviceTicket) {}
  virtual void copy_out(void* host, const void* device, size_t bytes) = 0;
  virtual void fill_zero(void* device, size_t bytes) = 0;

  using CopyMark = DeviceCopyMark;
  /// As copy_out(), but returns at once: until wait_for(), or sync(), the host's bytes mean
  /// nothing.
  virtual CopyMark copy_out_async(void* host, const void* device, size_t bytes) {
    copy_out(host, device, bytes);
    return 0;
  }
  /// Begins to copy out what is ordered before it, beside what is ordered after. Until wait_for(),
  /// or sync(), the source must stay as it is, and the host's bytes mean nothing.
  virtual CopyMark copy_out_beside(void* host, const void* device, size_t bytes) {
    copy_out(host, device, bytes);
    return 0;
  }
  /// False when the bytes are not there, because something has failed: sync() tells what.
  virtual bool wait_for(CopyMark) { return true; }
  /// As copy_in() for what is ordered after it, but beside what is ordered before, which must not
  /// use these bytes. The host's must stay as they are until sync().
  virtual void copy_in_beside(void* device, const void* host, size_t bytes) {
    copy_in(device, host, bytes);
  }
  /// Waits for all ordered work; an asynchronous failure surfaces here.
  virtual Status sync() = 0;

  /// True: between begin_capture() and end_capture() what one thread asks for (operations,
  /// copy_in_async(), fill_zero()) is recorded instead of done; what others ask for meanwhile is
  /// done. It must have been done before in the same shapes: the first time takes scratch memory
  /// and makes plans. Allocating, the other copies, results on the host, wait() and sync() cannot
  /// be recorded; they are failures of the capture.
  virtual bool captures() const { return false; }
  /// Waits for another thread's capture to end.
  virtual void begin_capture() {}
  /// From the same thread. Errors: what failed since begin_capture(), which sync() then does not
  /// tell. Null when something had failed before or the card is lost: that sync() tells.
  virtual Result<std::unique_ptr<DeviceGraph>> end_capture() {
    return Error{ErrorCode::kUnsupported, "records no work", description(), ""};
  }
  /// Starts it all, in order. A copy of it reads pinned memory as in copy_in_async().
  virtual void launch(DeviceGraph&) {}

  /// Set before passes and decoders are made.
  void set_graph_use(GraphUse use) {
    graph_use_ = std::move(use);
    told_.clear();
  }
  const GraphUse& graph_use() const { return graph_use_; }
  /// Whether its log has not been told this line: one is told once, whoever comes to say it.
  bool untold(const std::string& line) { return told_.insert(line).second; }

  virtual std::unique_ptr<TrainOps> make_train_ops(Precision precision) = 0;
  virtual std::unique_ptr<DecodeOps> make_decode_ops() = 0;

 private:
  GraphUse graph_use_;
  std::set<std::string> told_;
};

/// Makes one device, of `lanes` lanes where it has such. All that it makes have one numerics_id.
using DeviceFactory = std::function<Result<std::unique_ptr<Device>>(int lanes)>;

}  // namespace fastserve
