#include "gpu/cuda/event_line.h"

namespace fastserve::gpu {

EventLine::~EventLine() {
  for (const Recorded& recorded : recorded_) cudaEventDestroy(recorded.event);
}

cudaEvent_t EventLine::take() {
  cudaError_t code = cudaSuccess;
  const cudaEvent_t event = idle_.take(code);
  keep(code, "making an event");
  return event;
}

uint64_t EventLine::add(cudaEvent_t event, std::span<std::byte> host) {
  const std::lock_guard lock(mutex_);
  recorded_.push_back({++last_, event, host});
  return last_;
}

void EventLine::wait_for(uint64_t number, const char* doing,
                         const std::function<void(std::span<std::byte> host)>& passed) {
  std::unique_lock lock(mutex_);
  while (!recorded_.empty() && recorded_.front().number <= number) {
    const Recorded first = recorded_.front();
    lock.unlock();
    // Another thread may have waited for it, too, and given it to new work: then this is longer.
    keep(cudaEventSynchronize(first.event), doing);
    lock.lock();
    if (recorded_.empty() || recorded_.front().number != first.number) continue;
    if (passed) passed(first.host);
    recorded_.pop_front();
    idle_.give_back(first.event);
  }
}

}  // namespace fastserve::gpu
