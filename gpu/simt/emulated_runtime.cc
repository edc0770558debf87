#include "gpu/simt/emulated_runtime.h"

#include <sys/mman.h>

#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <string_view>

#include "base/file.h"
#include "gpu/simt/pinned_memory.h"

namespace fastserve::simt {
namespace {

class EmulatedRuntime final : public LinkedCard {
 public:
  explicit EmulatedRuntime(const Options& options)
      : memory_(options.memory),
        stream_(options, memory_),
        traffic_(options.traffic),
        graph_parts_(options.graph_parts) {
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
    if (refused("to allocate memory")) return gpu::refused_in_capture("to allocate memory", kName);
    if (void* const data = memory_.allocate(bytes)) return data;
    return Error{ErrorCode::kResourceExhausted, "cannot hold " + human_bytes(bytes), "emulated GPU",
                 "it has " + human_bytes(properties_.memory) + ", of which " +
                     human_bytes(memory_.available()) + " are free"};
  }

  void free(void* device) override {
    if (!device) return;
    refused("to free memory");
    const auto [bytes, intact] = memory_.free(device);
    if (!intact)
      report({ErrorCode::kInternal,
              "a kernel wrote past " + std::to_string(bytes) + " bytes of device memory", "", ""});
  }
  size_t available() const override { return memory_.available(); }

  Result<std::unique_ptr<DeviceBuffer>> allocate_host(size_t bytes) override {
    return pinned_.allocate(bytes);
  }
  bool pinned(const void* host, size_t bytes) const override { return pinned_.holds(host, bytes); }

  bool copy_in(void* device, const void* host, size_t bytes) override {
    if (bytes == 0) return true;
    if (failed() || refused("a copy from memory that is not pinned")) return false;
    copy(device, host, bytes);
    return true;
  }
  gpu::Ticket copy_in_async(void* device, const void* host, size_t bytes) override {
    if (bytes == 0 || failed()) return 0;
    if (!pinned_.holds(host, bytes)) {
      report(
          {ErrorCode::kInternal, "an asynchronous copy from memory that is not pinned", kName, ""});
      return 0;
    }
    const auto start = [=, this] {
      copy(device, host, bytes);
      return pinned_.started(host, bytes);
    };
    if (!stream_.captures()) return start();
    const auto later = [=, this] {
      if (!pinned_.holds(host, bytes)) return "its pinned memory has been freed since";
      start();
      return "";
    };
    stream_.capture("a copy to the card", later, device);
    return 0;
  }
  gpu::Ticket mark() override { return refused("to mark work") ? 0 : pinned_.last(); }
  void wait(gpu::Ticket ticket) override {
    if (!refused("to wait")) finish(ticket);
  }
  void copy_out(void* host, const void* device, size_t bytes) override {
    if (bytes == 0) return;
    if (failed() || refused("a copy from the card")) {
      std::memset(host, 0, bytes);
      return;
    }
    finish(~gpu::Ticket{0});  // what was started before has been done by then
    copy(host, device, bytes);
  }
  void fill_zero(void* device, size_t bytes) override {
    if (bytes == 0 || failed()) return;
    const auto fill = [=, this] {
      const DeviceMemory::Access access(memory_);
      std::memset(device, 0, bytes);
      return "";
    };
    if (stream_.captures())
      stream_.capture("clearing memory", fill, device);
    else
      fill();
  }

  /// The host sees nothing until it waits.
  DeviceCopyMark copy_out_async(void* host, const void* device, size_t bytes) override {
    if (bytes == 0 || refused("a copy from the card")) return 0;
    std::memset(host, 0xff, bytes);
    std::vector<std::byte> there(bytes);
    if (!failed()) copy(there.data(), device, bytes);
    const std::lock_guard lock(mutex_);
    copies_.push_back({++last_copy_, host, nullptr, bytes, std::move(there)});
    return last_copy_;
  }
  /// As late as it may be: the host sees nothing until it waits, and what has become of the source
  /// by then is what it gets.
  DeviceCopyMark copy_out_beside(void* host, const void* device, size_t bytes) override {
    if (bytes == 0 || refused("a copy beside it")) return 0;
    std::memset(host, 0xff, bytes);
    const std::lock_guard lock(mutex_);
    copies_.push_back({++last_copy_, host, device, bytes, {}});
    return last_copy_;
  }
  bool wait_for(DeviceCopyMark mark) override {
    if (refused("to wait")) return false;
    for (;;) {
      Copy late;
      {
        const std::lock_guard lock(mutex_);
        if (copies_.empty() || copies_.front().mark > mark) return !failure_;
        late = std::move(copies_.front());
        copies_.pop_front();
      }
      if (failed())
        std::memset(late.host, 0, late.bytes);
      else if (late.device != nullptr)
        copy(late.host, late.device, late.bytes);
      else
        std::memcpy(late.host, late.there.data(), late.bytes);
    }
  }
  void copy_in_beside(void* device, const void* host, size_t bytes) override {
    if (bytes == 0 || failed() || refused("a copy beside it")) return;
    copy(device, host, bytes);
    pinned_.started(host, bytes, /*anywhere=*/!pinned_.holds(host, bytes));
  }

  void begin_capture() override {
    if (refused("another capture")) return;
    stream_.begin_capture();
  }
  Result<std::unique_ptr<gpu::Graph>> end_capture() override {
    FS_CHECK(stream_.captures());
    const std::optional<Error> wrong = std::exchange(capture_failure_, std::nullopt);
    std::unique_ptr<EmulatedGraph> graph = stream_.end_capture();
    if (failed()) return std::unique_ptr<gpu::Graph>();
    if (wrong) return *wrong;
    if (graph_parts_ > 0 && graph->parts.size() > static_cast<size_t>(graph_parts_))
      return Error{ErrorCode::kResourceExhausted,
                   "has no room for a graph of " + std::to_string(graph->parts.size()) + " parts",
                   kName, ""};
    return std::unique_ptr<gpu::Graph>(std::move(graph));
  }
  void launch(gpu::Graph& graph) override {
    if (failed() || refused("to start a graph")) return;
    const std::string wrong = stream_.run(static_cast<const EmulatedGraph&>(graph));
    if (!wrong.empty()) report({ErrorCode::kInternal, wrong, kName, ""});
  }

  DeviceMemory& memory() override { return memory_; }
  Traffic* traffic() override { return traffic_.get(); }
  bool refused(const char* doing) override {
    if (!stream_.captures()) return false;
    report(gpu::refused_in_capture(doing, kName));
    return true;
  }
  bool start_kernel(const char* name) override {
    const std::string wrong = stream_.run({name, {1}, {1}, 0, [] {}});
    if (wrong.empty()) return true;
    report({ErrorCode::kInternal, std::string(name) + ": " + wrong, kName, ""});
    return false;
  }

  void report(Error error) override {
    if (stream_.captures()) {
      if (!capture_failure_) capture_failure_ = std::move(error);
      return;
    }
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::move(error);
  }
  bool failed() const override {
    if (stream_.captures() && capture_failure_) return true;
    const std::lock_guard lock(mutex_);
    return failure_.has_value();
  }
  Status sync() override {
    if (refused("to wait for the card")) return *capture_failure_;
    wait_for(~DeviceCopyMark{0});
    finish(~gpu::Ticket{0});
    const std::lock_guard lock(mutex_);
    if (!failure_) return {};
    if (stream_.lost()) return lost();
    return *std::exchange(failure_, std::nullopt);
  }

 private:
  static constexpr const char* kName = "emulated GPU";

  static Error lost() {
    return {ErrorCode::kUnavailable, "is lost, as its options asked", kName, ""};
  }

  void copy(void* to, const void* from, size_t bytes) {
    const DeviceMemory::Access access(memory_);
    std::memcpy(to, from, bytes);
    if (traffic_) (memory_.holds(to) ? traffic_->in : traffic_->out) += bytes;
  }
  void finish(gpu::Ticket ticket) {
    const std::string wrong = pinned_.finish(ticket);
    if (!wrong.empty()) report({ErrorCode::kInternal, wrong, kName, ""});
  }

  struct Copy {
    DeviceCopyMark mark;
    void* host;
    const void* device;  ///< null: what it held is `there`
    size_t bytes;
    std::vector<std::byte> there;
  };

  PinnedMemory pinned_;
  mutable DeviceMemory memory_;
  mutable EmulatedStream stream_;
  const std::shared_ptr<Traffic> traffic_;
  const int64_t graph_parts_;
  std::optional<Error> capture_failure_;  // the capturing thread's alone
  gpu::DeviceProperties properties_;
  mutable std::mutex mutex_;
  std::optional<Error> failure_;
  std::deque<Copy> copies_;  // that nobody has waited for
  DeviceCopyMark last_copy_ = 0;
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

std::string EmulatedStream::run_now(const EmulatedLaunch& launch) {
  if (options_.launches > 0 && started_++ >= options_.launches) {
    lost_ = true;
    return "the card is lost";
  }
  const DeviceMemory::Access access(memory_);
  return grids_.run(launch.grid, launch.block, launch.shared_bytes, options_, launch.body,
                    launch.together);
}

void EmulatedStream::begin_capture() {
  capturing_.lock();
  graph_ = std::make_unique<EmulatedGraph>();
  capturer_ = std::this_thread::get_id();
}

std::unique_ptr<EmulatedGraph> EmulatedStream::end_capture() {
  auto graph = std::move(graph_);
  reached_.clear();
  capturer_ = std::thread::id();
  capturing_.unlock();
  return graph;
}

std::string EmulatedStream::run(EmulatedLaunch launch) {
  if (!captures()) return run_now(launch);
  std::string name = "the kernel " + std::string(launch.kernel);
  capture(
      std::move(name), [this, launch = std::move(launch)] { return run_now(launch); }, nullptr);
  return "";
}

void EmulatedStream::capture(std::string name, std::function<std::string()> part,
                             const void* memory) {
  if (memory != nullptr) reached_[memory] = memory_.allocation_of(memory);
  graph_->parts.push_back({std::move(name), std::move(part), std::exchange(reached_, {})});
}

std::string EmulatedStream::run(const EmulatedGraph& graph) const {
  for (const EmulatedGraph::Part& part : graph.parts) {
    for (const auto& [memory, allocation] : part.memory)
      if (memory_.allocation_of(memory) != allocation)
        return part.name + " was captured with memory that has been freed since";
    const std::string wrong = part.run();
    if (!wrong.empty()) return part.name + " failed: " + wrong;
  }
  return "";
}

bool EmulatedStream::sees(const void* argument, size_t bytes) {
  if (!options_.own_memory && !captures()) return true;
  for (size_t at = 0; at + sizeof(uint64_t) <= bytes; at += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, static_cast<const std::byte*>(argument) + at, sizeof word);
    const void* const pointer = reinterpret_cast<const void*>(word);
    if (memory_.holds(pointer)) {
      if (captures()) reached_[pointer] = memory_.allocation_of(pointer);
    } else if (options_.own_memory && points_to_host(word)) {
      return false;
    }
  }
  return true;
}

std::unique_ptr<gpu::Runtime> make_emulated_runtime(const Options& options) {
  return std::make_unique<EmulatedRuntime>(options);
}

}  // namespace fastserve::simt
