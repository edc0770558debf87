#include "gpu/simt/pinned_memory.h"

#include <functional>
#include <string_view>

namespace fastserve::simt {
namespace {

uint64_t hash_of(const void* data, size_t bytes) {
  return std::hash<std::string_view>()({static_cast<const char*>(data), bytes});
}

}  // namespace

class PinnedMemory::Block final : public DeviceBuffer {
 public:
  Block(std::shared_ptr<gpu::PinnedRanges> ranges, size_t bytes)
      : ranges_(std::move(ranges)), memory_(bytes) {
    ranges_->add(memory_.data(), bytes);
  }
  ~Block() override { ranges_->remove(memory_.data()); }
  void* data() override { return memory_.data(); }
  size_t bytes() const override { return memory_.bytes(); }

 private:
  const std::shared_ptr<gpu::PinnedRanges> ranges_;
  gpu::HostBlock memory_;
};

std::unique_ptr<DeviceBuffer> PinnedMemory::allocate(size_t bytes) const {
  if (bytes == 0) return std::make_unique<gpu::HostBlock>(bytes);
  return std::make_unique<Block>(ranges_, bytes);
}

gpu::Ticket PinnedMemory::started(const void* data, size_t bytes, bool anywhere) {
  const std::lock_guard lock(mutex_);
  copies_.push_back({++last_, data, bytes, hash_of(data, bytes), anywhere});
  return last_;
}

gpu::Ticket PinnedMemory::last() {
  const std::lock_guard lock(mutex_);
  return last_;
}

std::string PinnedMemory::finish(gpu::Ticket ticket) {
  const std::lock_guard lock(mutex_);
  std::string wrong;
  size_t done = 0;
  for (; done < copies_.size() && copies_[done].ticket <= ticket; ++done) {
    const Copy& copy = copies_[done];
    if (!copy.anywhere && !holds(copy.data, copy.bytes))
      wrong = "pinned memory was freed before a copy from it was waited for";
    else if (hash_of(copy.data, copy.bytes) != copy.seen)
      wrong = "pinned memory was changed before a copy from it was waited for";
  }
  copies_.erase(copies_.begin(), copies_.begin() + static_cast<std::ptrdiff_t>(done));
  return wrong;
}

}  // namespace fastserve::simt
