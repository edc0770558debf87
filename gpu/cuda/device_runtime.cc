#include "gpu/cuda/device_runtime.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <optional>
#include <utility>

#include "base/file.h"
#include "gpu/cuda/cuda_error.h"

namespace fastserve::gpu {
namespace {

class PinnedMemory final : public DeviceBuffer {
 public:
  PinnedMemory(void* data, size_t bytes) : data_(data), bytes_(bytes) {}
  ~PinnedMemory() override { cudaFreeHost(data_); }
  void* data() override { return data_; }
  size_t bytes() const override { return bytes_; }

 private:
  void* data_;
  size_t bytes_;
};

class CudaRuntime final : public Runtime {
 public:
  CudaRuntime(int index, const std::string& name) : index_(index) { properties_.name = name; }

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
    return checked(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
  }

  ~CudaRuntime() override {
    if (stream_ == nullptr) return;
    cudaSetDevice(index_);
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
    cudaGetLastError();  // a lost card's, which nobody can be told of any more
  }

  const DeviceProperties& properties() const override { return properties_; }

  /// Makes the card the calling thread's: a launch that follows goes to the current one.
  StreamHandle stream() const override {
    make_current();
    return stream_;
  }

  Result<void*> allocate(size_t bytes) override {
    if (bytes == 0) return nullptr;
    FS_TRY(checked(cudaSetDevice(index_), "choosing the card"));
    void* memory = nullptr;
    if (const cudaError_t code = cudaMalloc(&memory, bytes); code != cudaSuccess)
      return no_room(code, bytes);
    const cudaError_t code = cudaMemsetAsync(memory, 0, bytes, stream_);
    if (code == cudaSuccess) return memory;
    cudaFree(memory);
    return failure(code, "clearing " + human_bytes(bytes));
  }

  void free(void* device) override {
    if (device == nullptr) return;
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
      return std::unique_ptr<DeviceBuffer>(new PinnedMemory(memory, bytes));
    }
    // A host that gives no more pinned memory has other memory: copies take longer from there.
    if (code != cudaErrorMemoryAllocation)
      return failure(code, "pinning " + human_bytes(bytes) + " of the host's memory");
    cudaGetLastError();
    return Runtime::allocate_host(bytes);
  }

  void copy_in(void* device, const void* host, size_t bytes) override {
    if (bytes == 0 || failed()) return;
    make_current();
    // From pageable memory, which is all that reaches here, the call returns once the bytes are
    // staged.
    keep(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_),
         [&] { return "copying " + human_bytes(bytes) + " to the card"; });
  }

  void copy_out(void* host, const void* device, size_t bytes) override {
    if (bytes == 0) return;
    if (failed()) {
      std::memset(host, 0, bytes);
      return;
    }
    make_current();
    cudaError_t code = cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_);
    if (code == cudaSuccess) code = cudaStreamSynchronize(stream_);
    if (code == cudaSuccess) return;
    std::memset(host, 0, bytes);  // nobody computes with what happened to lie there
    keep(code, [&] { return "copying " + human_bytes(bytes) + " from the card"; });
  }

  void fill_zero(void* device, size_t bytes) override {
    if (bytes == 0 || failed()) return;
    make_current();
    keep(cudaMemsetAsync(device, 0, bytes, stream_), "clearing memory");
  }

  void report(Error error) override {
    std::lock_guard lock(mutex_);
    if (!kept_) kept_ = std::move(error);
    failed_ = true;
  }

  bool failed() const override { return failed_; }

  Status sync() override {
    make_current();
    keep(cudaStreamSynchronize(stream_), "the card's work");
    std::lock_guard lock(mutex_);
    if (!kept_) return {};
    if (lost_) return *kept_;
    failed_ = false;
    return *std::exchange(kept_, std::nullopt);
  }

 private:
  /// Threads come and go: each call chooses the card anew.
  void make_current() const { keep(cudaSetDevice(index_), "choosing the card"); }

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

  void keep(cudaError_t code, const char* doing) const {
    keep(code, [&] { return std::string(doing); });
  }

  /// Keeps a failure for sync(). The first is kept, but a lost card is told before anything else.
  template <class Doing>
  void keep(cudaError_t code, const Doing& doing) const {
    if (code == cudaSuccess) return;
    Error error = failure(code, doing());
    std::lock_guard lock(mutex_);
    const bool lost = card_is_lost(code);
    if (!kept_ || (lost && !lost_)) kept_ = std::move(error);
    lost_ = lost_ || lost;
    failed_ = true;
  }

  const int index_;
  DeviceProperties properties_;
  cudaStream_t stream_ = nullptr;
  mutable std::mutex mutex_;
  mutable std::optional<Error> kept_;  // guarded by mutex_
  mutable bool lost_ = false;          // guarded by mutex_
  mutable std::atomic<bool> failed_ = false;
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
