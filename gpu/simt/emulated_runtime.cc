#include "gpu/simt/emulated_runtime.h"

#include <sys/mman.h>

#include <cstring>
#include <mutex>
#include <optional>
#include <string_view>

#include "base/file.h"

namespace fastserve::simt {
namespace {

class EmulatedRuntime final : public gpu::Runtime {
 public:
  explicit EmulatedRuntime(const Options& options)
      : memory_(options.memory), stream_(options, memory_) {
    properties_ = {.name = "emulated",
                   .major = 9,
                   .minor = 0,
                   .multiprocessors = 4,
                   .shared_memory = options.shared_memory,
                   .memory = options.memory};
  }
  const gpu::DeviceProperties& properties() const override { return properties_; }
  gpu::StreamHandle stream() const override { return &stream_; }

  Result<void*> allocate(size_t bytes) override {
    if (bytes == 0) return static_cast<void*>(nullptr);
    if (void* const data = memory_.allocate(bytes)) return data;
    return Error{ErrorCode::kResourceExhausted, "cannot hold " + human_bytes(bytes), "emulated GPU",
                 "it has " + human_bytes(properties_.memory) + ", of which " +
                     human_bytes(memory_.available()) + " are free"};
  }

  void free(void* device) override {
    if (!device) return;
    const auto [bytes, intact] = memory_.free(device);
    if (!intact)
      report({ErrorCode::kInternal,
              "a kernel wrote past " + std::to_string(bytes) + " bytes of device memory", "", ""});
  }
  size_t available() const override { return memory_.available(); }

  void copy_in(void* device, const void* host, size_t bytes) override {
    if (bytes == 0 || failed()) return;
    const DeviceMemory::Access access(memory_);
    std::memcpy(device, host, bytes);
  }
  void copy_out(void* host, const void* device, size_t bytes) override {
    if (bytes == 0) return;
    if (failed()) {
      std::memset(host, 0, bytes);
      return;
    }
    const DeviceMemory::Access access(memory_);
    std::memcpy(host, device, bytes);
  }
  void fill_zero(void* device, size_t bytes) override {
    if (bytes == 0 || failed()) return;
    const DeviceMemory::Access access(memory_);
    std::memset(device, 0, bytes);
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
    if (stream_.lost()) return lost();
    return *std::exchange(failure_, std::nullopt);
  }

 private:
  static Error lost() {
    return {ErrorCode::kUnavailable, "is lost, as its options asked", "emulated GPU", ""};
  }

  mutable DeviceMemory memory_;
  mutable EmulatedStream stream_;
  gpu::DeviceProperties properties_;
  mutable std::mutex mutex_;
  std::optional<Error> failure_;
};

/// A pointer to memory of the process, as far as eight bytes can tell. Numbers that happen to lie
/// side by side, and one beside padding that a compiler left as it was, are not taken for one.
bool points_to_host(uint64_t word) {
  [[maybe_unused]] constexpr uint64_t kPage = 4096;
  constexpr uint64_t kUser = uint64_t{1} << 47, kSmallNumber = 1 << 20;
  if (word < (uint64_t{1} << 32) || word >= kUser || word % 4 != 0 || word % 256 == 0) return false;
  if (static_cast<uint32_t>(word) < kSmallNumber) return false;
#if defined(__SANITIZE_ADDRESS__)
  // Most of its address space is mapped, whether or not anything is there.
  const std::string_view kind =
      __asan_locate_address(reinterpret_cast<void*>(word), nullptr, 0, nullptr, nullptr);
  return kind == "heap" || kind == "stack" || kind == "global";
#else
#if defined(__SANITIZE_THREAD__)
  constexpr uint64_t kShadow = uint64_t{0x5500}
                               << 32;  // ThreadSanitizer's own, and mapped, is below
  if (word < kShadow) return false;
#endif
  unsigned char resident = 0;
  return mincore(reinterpret_cast<void*>(word / kPage * kPage), kPage, &resident) == 0;
#endif
}

}  // namespace

std::string EmulatedStream::run(dim3 grid, dim3 block, size_t shared_bytes,
                                const std::function<void()>& body) {
  if (options_.launches > 0 && started_++ >= options_.launches) {
    lost_ = true;
    return "the card is lost";
  }
  const DeviceMemory::Access access(memory_);
  return grids_.run(grid, block, shared_bytes, options_, body);
}

bool EmulatedStream::sees(const void* argument, size_t bytes) const {
  if (!options_.own_memory) return true;
  for (size_t at = 0; at + sizeof(uint64_t) <= bytes; at += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, static_cast<const std::byte*>(argument) + at, sizeof word);
    if (!memory_.holds(reinterpret_cast<const void*>(word)) && points_to_host(word)) return false;
  }
  return true;
}

std::unique_ptr<gpu::Runtime> make_emulated_runtime(const Options& options) {
  return std::make_unique<EmulatedRuntime>(options);
}

}  // namespace fastserve::simt
