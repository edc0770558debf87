#include "model/preloaded.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "base/file.h"

namespace fastserve {
namespace {

/// Tensors lie on lines of their own, several of them in a block that is pinned at once: large
/// beside what starting that takes, small beside what anybody waits for who stops it.
constexpr size_t kLine = 64, kBlock = size_t{256} << 20;
/// What a thread copies at a time, and how many threads there are at the most.
constexpr size_t kChunk = size_t{4} << 20;
constexpr unsigned kMostThreads = 16;

size_t on_lines(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

class PreloadedTensors final : public TensorSource {
 public:
  PreloadedTensors(std::string where, std::map<std::string, TensorView, std::less<>> tensors,
                   std::vector<std::unique_ptr<DeviceBuffer>> blocks)
      : where_(std::move(where)), tensors_(std::move(tensors)), blocks_(std::move(blocks)) {}
  std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, view] : tensors_) names.push_back(name);
    return names;
  }
  bool contains(std::string_view name) const override {
    return tensors_.find(name) != tensors_.end();
  }
  Result<TensorView> tensor(std::string_view name) const override {
    const auto found = tensors_.find(name);
    if (found != tensors_.end()) return found->second;
    return Error{ErrorCode::kNotFound, "has no tensor " + std::string(name), where_, ""};
  }
  std::string where() const override { return where_; }

 private:
  const std::string where_;
  const std::map<std::string, TensorView, std::less<>> tensors_;
  const std::vector<std::unique_ptr<DeviceBuffer>> blocks_;
};

struct Copy {
  std::byte* to;
  std::span<const std::byte> from;
};

/// Copies side by side; between its own copies the caller tells of the bytes that are done.
class Copying {
 public:
  explicit Copying(const std::vector<Copy>& copies) {
    for (const Copy& copy : copies)
      for (size_t at = 0; at < copy.from.size(); at += kChunk)
        chunks_.push_back(
            {copy.to + at, copy.from.subspan(at, std::min(kChunk, copy.from.size() - at))});
  }
  /// False: `goes_on` said so.
  template <class GoesOn>
  bool run(const GoesOn& goes_on) {
    const size_t others = std::min<size_t>(
        chunks_.size(), std::clamp(std::thread::hardware_concurrency(), 1u, kMostThreads));
    std::vector<std::thread> threads;
    try {
      for (size_t i = 1; i < others; ++i)
        threads.emplace_back([this] {
          while (copy_one()) {
          }
        });
    } catch (const std::system_error&) {
      // No more threads to be had: those that are there copy all of it.
    }
    bool whole = true;
    while (whole && copy_one()) whole = goes_on(bytes_.load());
    if (!whole) next_ = chunks_.size();
    for (std::thread& thread : threads) thread.join();
    return whole && goes_on(bytes_.load());
  }

 private:
  bool copy_one() {
    const size_t i = next_++;
    if (i >= chunks_.size()) return false;
    std::memcpy(chunks_[i].to, chunks_[i].from.data(), chunks_[i].from.size());
    bytes_ += chunks_[i].from.size();
    return true;
  }
  std::vector<Copy> chunks_;
  std::atomic<size_t> next_ = 0, bytes_ = 0;
};

/// Pinned, which memory of allocate_host() need not be.
Result<std::unique_ptr<DeviceBuffer>> pin(Device& device, size_t bytes, uint64_t had,
                                          uint64_t needed, const std::string& where) {
  FS_ASSIGN(std::unique_ptr<DeviceBuffer> block, device.allocate_host(bytes));
  if (device.pinned(block->data(), bytes)) return block;
  return Error{ErrorCode::kResourceExhausted,
               "needs " + human_bytes(needed) +
                   " of pinned memory, and the host gives no more of "
                   "it after " +
                   human_bytes(had),
               where, "keep fewer models in pinned memory, or load this one without"};
}

}  // namespace

Result<ModelBundle> preload(Device& device, const ModelBundle& bundle, uint64_t most,
                            const PreloadWatch& watch) {
  if (device.host_memory()) return bundle;
  const TensorSource& source = *bundle.tensors;
  const auto stopped = [&] { return watch.stopped && watch.stopped(); };
  const Error cancelled{ErrorCode::kCancelled, "stopped while it was copied to pinned memory",
                        source.where(), ""};
  std::map<std::string, TensorView, std::less<>> tensors;
  uint64_t needed = 0;
  for (const std::string& name : source.names()) {
    if (stopped()) return cancelled;
    FS_ASSIGN(TensorView view, source.tensor(name));
    needed += on_lines(view.bytes.size());
    tensors.emplace(name, std::move(view));
  }
  if (needed > most)
    return Error{
        ErrorCode::kResourceExhausted,
        "needs " + human_bytes(needed) + " of pinned memory, and may take " + human_bytes(most),
        source.where(), "allow more pinned memory, or load it without"};

  std::vector<std::unique_ptr<DeviceBuffer>> blocks;
  uint64_t done = 0;
  for (auto next = tensors.begin(); next != tensors.end();) {
    const auto first = next;
    size_t bytes = 0;
    do {
      bytes += on_lines(next->second.bytes.size());
      ++next;
    } while (next != tensors.end() && bytes + next->second.bytes.size() <= kBlock);
    if (bytes == 0) continue;
    if (stopped()) return cancelled;
    FS_ASSIGN(std::unique_ptr<DeviceBuffer> block,
              pin(device, bytes, done, needed, source.where()));
    std::vector<Copy> copies;
    auto* to = static_cast<std::byte*>(block->data());
    blocks.push_back(std::move(block));
    for (auto it = first; it != next; ++it) {
      std::span<const std::byte>& place = it->second.bytes;
      copies.push_back({to, place});
      place = {to, place.size()};
      to += on_lines(place.size());
    }
    const bool whole = Copying(copies).run([&](size_t copied) {
      if (watch.progress)
        watch.progress(static_cast<double>(done + copied) / static_cast<double>(needed));
      return !stopped();
    });
    if (!whole) return cancelled;
    done += bytes;
  }
  if (watch.progress) watch.progress(1);
  return ModelBundle{bundle.documents, std::make_shared<PreloadedTensors>(
                                           source.where(), std::move(tensors), std::move(blocks))};
}

}  // namespace fastserve
