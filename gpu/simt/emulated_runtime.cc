#include "gpu/simt/emulated_runtime.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>

namespace fastserve::simt {
namespace {

constexpr size_t kAlignment = 256, kGuard = 256;
constexpr int kGuardByte = 0xa5;

class EmulatedRuntime final : public gpu::Runtime {
 public:
  explicit EmulatedRuntime(const Options& options) : stream_(options) {
    properties_ = {.name = "emulated",
                   .major = 9,
                   .minor = 0,
                   .multiprocessors = 4,
                   .shared_memory = options.shared_memory,
                   .memory = size_t{8} << 30};
  }
  const gpu::DeviceProperties& properties() const override { return properties_; }
  gpu::StreamHandle stream() const override { return &stream_; }

  Result<void*> allocate(size_t bytes) override {
    if (bytes == 0) return static_cast<void*>(nullptr);
    const size_t room = (bytes + kGuard + kAlignment - 1) / kAlignment * kAlignment;
    void* const data = bytes > properties_.memory ? nullptr : std::aligned_alloc(kAlignment, room);
    if (!data)
      return Error{ErrorCode::kResourceExhausted,
                   "the emulated GPU cannot hold " + std::to_string(bytes) + " bytes", "",
                   "it has " + std::to_string(properties_.memory)};
    std::memset(data, 0, bytes);
    std::memset(static_cast<char*>(data) + bytes, kGuardByte, room - bytes);
    const std::lock_guard lock(mutex_);
    sizes_[data] = {bytes, room};
    return data;
  }

  void free(void* device) override {
    if (!device) return;
    const std::unique_lock lock(mutex_);
    const auto [bytes, room] = sizes_.at(device);
    for (size_t i = bytes; i < room; ++i)
      if (static_cast<unsigned char*>(device)[i] != kGuardByte && !failure_)
        failure_ = Error{ErrorCode::kInternal,
                         "a kernel wrote past " + std::to_string(bytes) + " bytes of device memory",
                         "", ""};
    sizes_.erase(device);
    std::free(device);
  }

  void copy_in(void* device, const void* host, size_t bytes) override {
    if (bytes != 0 && !failed()) std::memcpy(device, host, bytes);
  }
  void copy_out(void* host, const void* device, size_t bytes) override {
    if (bytes == 0) return;
    if (failed())
      std::memset(host, 0, bytes);
    else
      std::memcpy(host, device, bytes);
  }
  void fill_zero(void* device, size_t bytes) override {
    if (bytes != 0 && !failed()) std::memset(device, 0, bytes);
  }

  void report(Error error) override {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::move(error);
  }
  bool failed() const override {
    const std::lock_guard lock(mutex_);
    return failure_.has_value();
  }
  Status sync() override {
    const std::lock_guard lock(mutex_);
    if (!failure_) return {};
    return *std::exchange(failure_, std::nullopt);
  }

 private:
  mutable EmulatedStream stream_;
  gpu::DeviceProperties properties_;
  mutable std::mutex mutex_;
  std::map<void*, std::pair<size_t, size_t>> sizes_;
  std::optional<Error> failure_;
};

}  // namespace

std::string EmulatedStream::run(dim3 grid, dim3 block, size_t shared_bytes,
                                const std::function<void()>& body) {
  return grids_.run(grid, block, shared_bytes, options_, body);
}

std::unique_ptr<gpu::Runtime> make_emulated_runtime(const Options& options) {
  return std::make_unique<EmulatedRuntime>(options);
}

}  // namespace fastserve::simt
