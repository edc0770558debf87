#include "gpu/cuda/device_runtime.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "gpu/cuda/beside_stream.h"
#include "gpu/cuda/cuda_error.h"
#include "gpu/cuda/pinned_memory.h"

namespace fastserve::gpu {
namespace {

class CudaGraph final : public Graph {
 public:
  explicit CudaGraph(cudaGraphExec_t graph) : graph_(graph) {}
  ~CudaGraph() override { cudaGraphExecDestroy(graph_); }  // once it has run, if it runs
  cudaGraphExec_t get() const { return graph_; }

 private:
  cudaGraphExec_t graph_;
};

class CudaRuntime final : public Runtime {
 public:
  CudaRuntime(int index, const std::string& name)
      : index_(index), marks_(keeping()), beside_(keeping()) {
    properties_.name = name;
  }

  Status open() {
    const auto ask = [&](cudaDeviceAttr which, auto& into) {
      int value = 0;
      const cudaError_t code = cudaDeviceGetAttribute(&value, which, index_);
      into = static_cast<std::remove_reference_t<decltype(into)>>(value);
      return code;
    };
    const char* const opening = "opening the card";
    FS_TRY(checked(cudaSetDevice(index_), opening));
    FS_TRY(checked(ask(cudaDevAttrComputeCapabilityMajor, properties_.major), opening));
    FS_TRY(checked(ask(cudaDevAttrComputeCapabilityMinor, properties_.minor), opening));
    FS_TRY(checked(ask(cudaDevAttrMultiProcessorCount, properties_.multiprocessors), opening));
    FS_TRY(
        checked(ask(cudaDevAttrMaxSharedMemoryPerBlockOptin, properties_.shared_memory), opening));
    size_t unused = 0;
    FS_TRY(checked(cudaMemGetInfo(&unused, &properties_.memory), opening));
    FS_TRY(checked(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"));
    return checked(beside_.open(), "making a stream for copies");
  }

  ~CudaRuntime() override {
    if (stream_ == nullptr) return;
    if (captures_here()) static_cast<void>(end_capture().ok());
    cudaSetDevice(index_);
    cudaStreamSynchronize(stream_);
    if (capture_stream_ != nullptr) cudaStreamDestroy(capture_stream_);
    cudaStreamDestroy(stream_);
    cudaGetLastError();  // a lost card's, which nobody can be told of any more
  }

  const DeviceProperties& properties() const override { return properties_; }

  /// Makes the card the calling thread's: a launch that follows goes to the current one.
  StreamHandle stream() const override {
    make_current();
    return captures_here() ? capture_stream_ : stream_;
  }

  Result<void*> allocate(size_t bytes) override {
    if (bytes == 0) return nullptr;
    if (refused("to allocate memory"))
      return refused_in_capture("to allocate memory", properties_.name);
    FS_TRY(checked(cudaSetDevice(index_), "choosing the card"));
    void* memory = nullptr;
    if (const cudaError_t code = cudaMalloc(&memory, bytes); code != cudaSuccess)
      return no_room(code, bytes);
    end_chain();
    const cudaError_t code = cudaMemsetAsync(memory, 0, bytes, stream_);
    if (code == cudaSuccess) return memory;
    cudaFree(memory);
    return failure(code, "clearing " + human_bytes(bytes));
  }

  void free(void* device) override {
    if (device == nullptr) return;
    if (refused("to free memory")) return freed_in_capture_.push_back(device);
    make_current();
    keep(cudaStreamSynchronize(stream_), "work before memory was freed");
    keep(cudaFree(device), "freeing memory");
  }

  size_t available() const override {
    make_current();
    size_t left = 0, total = 0;
    keep(cudaMemGetInfo(&left, &total), "asking for the card's free memory");
    return left;
  }

  Result<std::unique_ptr<DeviceBuffer>> allocate_host(size_t bytes) override {
    if (bytes == 0) return Runtime::allocate_host(bytes);
    FS_TRY(checked(cudaSetDevice(index_), "choosing the card"));
    void* memory = nullptr;
    const cudaError_t code = cudaHostAlloc(&memory, bytes, cudaHostAllocPortable);
    if (code == cudaSuccess) {
      std::memset(memory, 0, bytes);
      return std::unique_ptr<DeviceBuffer>(new PinnedMemory(memory, bytes, pinned_));
    }
    // A host that gives no more pinned memory has other memory: copies take longer from there.
    if (code != cudaErrorMemoryAllocation)
      return failure(code, "pinning " + human_bytes(bytes) + " of the host's memory");
    cudaGetLastError();
    return Runtime::allocate_host(bytes);
  }
  bool pinned(const void* host, size_t bytes) const override { return pinned_->hold(host, bytes); }

  bool copy_in(void* device, const void* host, size_t bytes) override {
    if (bytes == 0) return true;
    if (failed() || refused("a copy from memory that is not pinned")) return false;
    // From pageable memory, which is all that reaches here, the call returns once the bytes are
    // staged.
    return start_copy_in(device, host, bytes);
  }

  Ticket copy_in_async(void* device, const void* pinned, size_t bytes) override {
    if (bytes == 0 || failed()) return 0;
    start_copy_in(device, pinned, bytes);
    return captures_here() ? 0 : mark();
  }

  Ticket mark() override {
    if (refused("to mark work")) return 0;
    make_current();
    const cudaEvent_t event = marks_.take();
    if (event == nullptr) return 0;
    keep(cudaEventRecord(event, stream_), "marking work");
    return marks_.add(event);
  }

  void wait(Ticket ticket) override {
    if (refused("to wait")) return;
    make_current();
    marks_.wait_for(ticket, "work that was marked");
  }

  void copy_out(void* host, const void* device, size_t bytes) override {
    if (gives_zeros(host, bytes, "a copy from the card")) return;
    cudaError_t code = cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_);
    if (code == cudaSuccess) code = cudaStreamSynchronize(stream_);
    if (code == cudaSuccess) return;
    std::memset(host, 0, bytes);  // nobody computes with what happened to lie there
    keep(code, [&] { return "copying " + human_bytes(bytes) + " from the card"; });
  }
  DeviceCopyMark copy_out_async(void* host, const void* device, size_t bytes) override {
    if (gives_zeros(host, bytes, "a copy from the card")) return 0;
    return beside_.copy_out_on(work(), host, device, bytes);
  }
  DeviceCopyMark copy_out_beside(void* host, const void* device, size_t bytes) override {
    if (gives_zeros(host, bytes, "a copy beside it")) return 0;
    return beside_.copy_out(stream_, host, device, bytes);
  }
  bool wait_for(DeviceCopyMark mark) override {
    if (refused("to wait")) return false;
    make_current();
    beside_.wait_for(mark, [this] { return failed(); });
    return !failed();
  }
  void copy_in_beside(void* device, const void* host, size_t bytes) override {
    if (bytes == 0 || failed() || refused("a copy beside it")) return;
    make_current();
    beside_.copy_in(stream_, device, host, bytes);
  }

  void fill_zero(void* device, size_t bytes) override {
    if (bytes == 0 || failed()) return;
    keep(cudaMemsetAsync(device, 0, bytes, work()), "clearing memory");
  }

  void begin_capture() override {
    if (refused("another capture")) return;
    capturing_.lock();
    capturer_ = std::this_thread::get_id();
    if (failed()) return;
    make_current();
    // A stream of its own: what other threads start meanwhile is none of the graph's business, nor
    // are their calls that a capture of theirs would not allow.
    cudaError_t code = cudaSuccess;
    if (capture_stream_ == nullptr)
      code = cudaStreamCreateWithFlags(&capture_stream_, cudaStreamNonBlocking);
    if (code == cudaSuccess)
      code = cudaStreamBeginCapture(capture_stream_, cudaStreamCaptureModeThreadLocal);
    stream_captures_ = code == cudaSuccess;
    keep(code, "capturing work");
  }

  Result<std::unique_ptr<Graph>> end_capture() override {
    FS_CHECK(captures_here());
    make_current();
    cudaGraph_t graph = nullptr;
    if (std::exchange(stream_captures_, false))
      keep(cudaStreamEndCapture(capture_stream_, &graph), "the captured work");
    cudaGraphExec_t started = nullptr;
    if (!failed()) keep(cudaGraphInstantiate(&started, graph, 0), "making a graph of it");
    if (graph != nullptr) keep(cudaGraphDestroy(graph), "the captured work");
    std::unique_ptr<CudaGraph> made;
    if (started != nullptr) made = std::make_unique<CudaGraph>(started);
    const std::optional<Error> wrong = std::exchange(capture_failure_, std::nullopt);
    const std::vector<void*> freed = std::exchange(freed_in_capture_, {});
    capturer_ = std::thread::id();
    capturing_.unlock();
    for (void* memory : freed) free(memory);
    std::lock_guard lock(mutex_);
    if (kept_) return std::unique_ptr<Graph>();
    if (wrong) return *wrong;
    return std::unique_ptr<Graph>(std::move(made));
  }

  void launch(Graph& graph) override {
    if (failed() || refused("to start a graph")) return;
    make_current();
    keep(cudaGraphLaunch(static_cast<CudaGraph&>(graph).get(), stream_), "starting a graph");
  }

  void report(Error error) override {
    if (captures_here()) {
      if (!capture_failure_) capture_failure_ = std::move(error);
      return;
    }
    std::lock_guard lock(mutex_);
    if (!kept_) kept_ = std::move(error);
    failed_ = true;
  }

  bool failed() const override { return failed_ || (captures_here() && capture_failure_); }

  Status sync() override {
    if (refused("to wait for the card")) return *capture_failure_;
    make_current();
    keep(cudaStreamSynchronize(stream_), "the card's work");
    beside_.sync([this] { return failed(); });
    wait(~Ticket{0});  // for nothing any more: gives the events up
    std::lock_guard lock(mutex_);
    if (!kept_) return {};
    if (lost_) return *kept_;
    failed_ = false;
    return *std::exchange(kept_, std::nullopt);
  }

 private:
  /// Threads come and go: each call chooses the card anew. Every call that gives the stream work
  /// comes through here.
  void make_current() const {
    end_chain();
    keep(cudaSetDevice(index_), "choosing the card");
  }

  bool captures_here() const { return capturer_ == std::this_thread::get_id(); }

  cudaStream_t work() const { return static_cast<cudaStream_t>(stream()); }

  /// This thread's work is being captured, and `doing` cannot be: kept as a failure.
  bool refused(const char* doing) {
    if (!captures_here()) return false;
    report(refused_in_capture(doing, properties_.name));
    return true;
  }

  /// What is to be copied out is nothing, or cannot be had. Else the card is made current.
  bool gives_zeros(void* host, size_t bytes, const char* doing) {
    if (bytes == 0) return true;
    if (failed() || refused(doing)) {
      std::memset(host, 0, bytes);
      return true;
    }
    make_current();
    return false;
  }

  bool start_copy_in(void* device, const void* host, size_t bytes) {
    const cudaError_t code = cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, work());
    keep(code, [&] { return "copying " + human_bytes(bytes) + " to the card"; });
    return code == cudaSuccess;
  }

  Error failure(cudaError_t code, const std::string& doing) const {
    return cuda_error(code, doing, properties_.name);
  }

  Status checked(cudaError_t code, const char* doing) {
    if (code == cudaSuccess) return {};
    return failure(code, doing);
  }

  Error no_room(cudaError_t code, size_t bytes) {
    size_t left = 0, total = 0;
    if (cudaMemGetInfo(&left, &total) != cudaSuccess) left = 0;
    return failure(code, "taking " + human_bytes(bytes) + " of the card's memory, of which " +
                             human_bytes(left) + " are free,");
  }

  EventLine::Keep keeping() {
    return
        [this](cudaError_t code, const std::string& doing) { keep(code, [&] { return doing; }); };
  }

  void keep(cudaError_t code, const char* doing) const {
    keep(code, [&] { return std::string(doing); });
  }

  /// Keeps a failure for sync(), or for end_capture(). The first is kept, but a lost card is told
  /// before anything else.
  template <class Doing>
  void keep(cudaError_t code, const Doing& doing) const {
    if (code == cudaSuccess) return;
    Error error = failure(code, doing());
    const bool lost = card_is_lost(code);
    if (captures_here() && !lost) {
      if (!capture_failure_) capture_failure_ = std::move(error);
      return;
    }
    std::lock_guard lock(mutex_);
    if (!kept_ || (lost && !lost_)) kept_ = std::move(error);
    lost_ = lost_ || lost;
    failed_ = true;
  }

  const int index_;
  const std::shared_ptr<PinnedRanges> pinned_ = std::make_shared<PinnedRanges>();
  DeviceProperties properties_;
  cudaStream_t stream_ = nullptr;
  std::mutex capturing_;  // held from begin_capture() to end_capture()
  std::atomic<std::thread::id> capturer_;
  // Of the thread that captures alone.
  cudaStream_t capture_stream_ = nullptr;
  bool stream_captures_ = false;
  std::vector<void*> freed_in_capture_;
  mutable std::optional<Error> capture_failure_;
  mutable std::mutex mutex_;
  mutable std::optional<Error> kept_;  // guarded by mutex_
  mutable bool lost_ = false;          // guarded by mutex_
  mutable std::atomic<bool> failed_ = false;
  // Last: they tell of their failures above.
  EventLine marks_;
  BesideStream beside_;
};

class SharedMemory final : public DeviceBuffer {
 public:
  SharedMemory(void* data, size_t bytes) : data_(data), bytes_(bytes) {}
  ~SharedMemory() override { cudaFree(data_); }
  void* data() override { return data_; }
  size_t bytes() const override { return bytes_; }

 private:
  void* data_;
  size_t bytes_;
};

}  // namespace

Result<std::unique_ptr<DeviceBuffer>> allocate_shared_memory(size_t bytes) {
  void* data = nullptr;
  const cudaError_t code = cudaMallocManaged(&data, bytes, cudaMemAttachGlobal);
  if (code != cudaSuccess) return cuda_error(code, "taking " + human_bytes(bytes), "shared memory");
  std::memset(data, 0, bytes);
  return std::unique_ptr<DeviceBuffer>(new SharedMemory(data, bytes));
}

Result<std::unique_ptr<Runtime>> make_cuda_runtime(int index, const std::string& name) {
  auto runtime = std::make_unique<CudaRuntime>(index, name);
  FS_TRY(runtime->open());
  return std::unique_ptr<Runtime>(std::move(runtime));
}

}  // namespace fastserve::gpu
