#include "train/gradient_buffer.h"

namespace fastserve {

Result<GradientHandle> GradientPool::take() {
  std::unique_ptr<GradientBuffer> buffer;
  {
    std::lock_guard lock(state_->mutex);
    if (!state_->idle.empty()) {
      buffer = std::move(state_->idle.back());
      state_->idle.pop_back();
    } else {
      FS_ASSIGN(auto memory, state_->allocate());
      buffer = std::make_unique<GradientBuffer>(std::move(memory), state_->first, state_->member);
      state_->made++;
    }
  }
  return GradientHandle(buffer.release(), [pool = std::weak_ptr(state_)](GradientBuffer* returned) {
    std::unique_ptr<GradientBuffer> owned(returned);
    const auto state = pool.lock();
    if (!state) return;
    std::lock_guard lock(state->mutex);
    state->idle.push_back(std::move(owned));
  });
}

size_t GradientPool::made() const {
  std::lock_guard lock(state_->mutex);
  return state_->made;
}

}  // namespace fastserve
