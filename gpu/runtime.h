// What the operations need of a GPU: memory, one ordered stream, launches, and what the card is.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "model/device_parts.h"

namespace fastserve::gpu {

/// What a card can do, as far as a launch depends on it.
struct DeviceProperties {
  std::string name;          ///< "NVIDIA H200", "emulated"
  int major = 0, minor = 0;  ///< compute capability
  int multiprocessors = 0;
  size_t shared_memory = 48 << 10;  ///< most that one block may ask for, with the opt-in
  size_t memory = 0;                ///< bytes on the card
};

/// The host's memory as a buffer.
class HostBlock final : public DeviceBuffer {
 public:
  explicit HostBlock(size_t bytes)
      : lines_((bytes + sizeof(Line) - 1) / sizeof(Line)), bytes_(bytes) {}
  void* data() override { return lines_.data(); }
  size_t bytes() const override { return bytes_; }

 private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> lines_;
  size_t bytes_;
};

using Graph = DeviceGraph;
using Ticket = DeviceTicket;

/// A cudaStream_t under nvcc; the emulator's own state elsewhere. Only launches look inside.
using StreamHandle = void*;

/// One GPU and one stream on it. Everything is ordered on the stream but for copies beside it;
/// copies out and sync() wait.
///
/// Owns:     the stream. Memory belongs to who allocated it, and is freed before the runtime is.
/// Threads:  calls may come from several threads, each ordered behind those that returned before.
///           A capture is the thread's that began it: what others ask for meanwhile is done.
/// Errors:   a call that cannot report (a copy, a launch) keeps the first failure; sync() returns
///           it, and goes on returning it when the card is lost. What fails in a capture is
///           end_capture()'s to return, but for a lost card.
class Runtime {
 public:
  virtual ~Runtime() = default;
  virtual const DeviceProperties& properties() const = 0;
  /// Where the calling thread's work goes: while it captures, another one than the others'.
  virtual StreamHandle stream() const = 0;

  /// Zeroed, 256-byte aligned; null for no bytes. kResourceExhausted with both sizes.
  virtual Result<void*> allocate(size_t bytes) = 0;
  /// Waits for work that may still use it.
  virtual void free(void* device) = 0;
  /// Bytes that can still be had; one piece may be smaller.
  virtual size_t available() const = 0;

  /// Zeroed memory of the host that copies reach without a detour; it may outlive the runtime.
  /// Not for copy_in(), whose source would have to stay as it is. Here: any memory.
  virtual Result<std::unique_ptr<DeviceBuffer>> allocate_host(size_t bytes) {
    return std::unique_ptr<DeviceBuffer>(std::make_unique<HostBlock>(bytes));
  }

  /// As Device's. Threads: any.
  virtual bool pinned(const void* /*host*/, size_t /*bytes*/) const { return false; }

  /// The host's bytes may change as soon as this returns. False: nothing was copied, since
  /// something has failed.
  virtual bool copy_in(void* device, const void* host, size_t bytes) = 0;
  /// Returns at once. `pinned` lies in memory of allocate_host(), which stays as it is, and is not
  /// freed, until wait() has returned for the ticket, or a sync() or copy_out() that came later.
  virtual Ticket copy_in_async(void* device, const void* pinned, size_t bytes) = 0;
  /// The work so far. Here: it is done.
  virtual Ticket mark() { return 0; }
  /// Returns when the work up to the ticket is done.
  virtual void wait(Ticket ticket) = 0;
  /// Returns when the bytes are there.
  virtual void copy_out(void* host, const void* device, size_t bytes) = 0;
  virtual void fill_zero(void* device, size_t bytes) = 0;
  /// As Device's.
  virtual DeviceCopyMark copy_out_async(void* host, const void* device, size_t bytes) {
    copy_out(host, device, bytes);
    return 0;
  }
  virtual DeviceCopyMark copy_out_beside(void* host, const void* device, size_t bytes) {
    copy_out(host, device, bytes);
    return 0;
  }
  virtual bool wait_for(DeviceCopyMark) { return !failed(); }
  /// As Device's; the host's bytes may change once a later mark() has been waited for, too.
  virtual void copy_in_beside(void* device, const void* host, size_t bytes) {
    copy_in(device, host, bytes);
  }

  /// From here on the calling thread's launches, products, copy_in_async() and fill_zero() are
  /// recorded instead of done. Their first run in a process had better be before: it loads kernels,
  /// plans products and takes scratch memory. What cannot be recorded is a failure, and ends in no
  /// graph: to allocate or free, copy_in(), copy_out(), wait(), sync(), another capture. Waits
  /// while another thread captures.
  virtual void begin_capture() = 0;
  /// What failed since begin_capture(), which sync() then does not tell. Null when something had
  /// failed before or the card is lost: that sync() tells.
  virtual Result<std::unique_ptr<Graph>> end_capture() = 0;
  /// Starts all of it in order. A copy of it reads pinned memory as in copy_in_async().
  virtual void launch(Graph& graph) = 0;

  /// Keeps a failure for sync(), unless an earlier one is kept already.
  virtual void report(Error error) = 0;
  /// While a failure is kept, launches, products and copies do nothing (a copy out gives zeros): no
  /// kernel runs on memory that could not be had, which would lose the card.
  virtual bool failed() const = 0;
  virtual Status sync() = 0;

  /// The stream's last work is a kernel that launch_chained() started: the next such one may begin
  /// before it is done. Whatever else the stream is given ends the chain (stream() does it), so
  /// that what a chain does not write itself is there before its first kernel begins.
  bool in_chain() const { return in_chain_; }
  void continue_chain() { in_chain_ = true; }

  /// Calls `let`, which lets `kernel` have so much shared memory on this card, unless it was let
  /// have it before; what `let` returns, or a value of that type that stands for success.
  template <class Let>
  auto let_have(const void* kernel, size_t shared_bytes, const Let& let) {
    const std::lock_guard lock(let_have_mutex_);
    size_t& had = let_have_[kernel];
    if (had >= shared_bytes) return decltype(let()){};
    const auto done = let();
    if (done == decltype(done){}) had = shared_bytes;
    return done;
  }

 protected:
  void end_chain() const { in_chain_ = false; }

 private:
  mutable std::atomic<bool> in_chain_ = false;
  std::mutex let_have_mutex_;
  std::map<const void*, size_t> let_have_;  // guarded by let_have_mutex_
};

/// What a runtime keeps when `doing` is asked of it during a capture.
inline Error refused_in_capture(const char* doing, const std::string& card) {
  return {ErrorCode::kInternal, std::string(doing) + " cannot be part of captured work", card, ""};
}

/// Device memory with one owner.
class Memory {
 public:
  Memory() = default;
  static Result<Memory> allocate(Runtime& runtime, size_t bytes) {
    FS_ASSIGN(void* data, runtime.allocate(bytes));
    Memory memory;
    memory.runtime_ = &runtime;
    memory.data_ = data;
    memory.bytes_ = bytes;
    return Result<Memory>(std::move(memory));
  }
  Memory(Memory&& other) noexcept { *this = std::move(other); }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(runtime_, other.runtime_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Memory() {
    if (data_) runtime_->free(data_);
  }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  Runtime* runtime_ = nullptr;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// The emulator's runtime (gpu/simt/emulated_runtime.h makes it) and the CUDA one (gpu/cuda/) both
/// go through gpu/launch.h to start a kernel:
///
///   launch(runtime, {"norm_forward", {rows}, {128}, shared_bytes}, norm_forward<BFloat16>,
///   args...);

}  // namespace fastserve::gpu
