#include "gpu/stored_checks.h"

#include <vector>

namespace fastserve::gpu {

Result<uint32_t*> StoredChecks::add(size_t parts) {
  FS_CHECK(parts <= kMost);
  if (added_ - looked_at_ + parts > kMost) look();
  if (counters_.bytes() == 0) {
    FS_ASSIGN(counters_, Memory::allocate(runtime_, kMost * 2 * sizeof(uint32_t)));
  }
  uint32_t* const own = static_cast<uint32_t*>(counters_.data()) + 2 * (added_ - looked_at_);
  added_ += parts;
  return own;
}

void StoredChecks::look() {
  std::vector<uint32_t> found(2 * (added_ - looked_at_));
  runtime_.copy_out(found.data(), counters_.data(), found.size() * sizeof(uint32_t));
  for (size_t i = 0; i < found.size() && !fault_; ++i)
    if (found[i] != 0) fault_ = StoredFault{looked_at_ + i / 2, i % 2 == 0};
  runtime_.fill_zero(counters_.data(), counters_.bytes());
  looked_at_ = added_;
}

std::optional<StoredFault> StoredChecks::finish() {
  if (added_ != looked_at_) look();
  counters_ = Memory();
  looked_at_ = added_ = 0;
  return std::exchange(fault_, {});
}

}  // namespace fastserve::gpu
