#include "gpu/fill_threads.h"

#include <algorithm>

#include "base/check.h"

namespace fastserve::gpu {
namespace {

/// Some hundred microseconds: more than lies between two pieces, less than anybody would notice.
constexpr int kLooks = 1000;

}  // namespace

FillThreads::FillThreads(size_t ahead, unsigned most)
    : ahead_(ahead),
      others_(std::clamp(std::thread::hardware_concurrency(), 1u, most) - 1),
      filled_(ahead) {}

FillThreads::~FillThreads() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  woken_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void FillThreads::begin(size_t parts, Fill fill) {
  FS_CHECK(granted_ == finished_ && parts > 0);
  fill_ = std::move(fill);
  parts_ = parts;
  first_part_ = limit_;
  granted_ = finished_ = 0;
  if (parts > 1)
    while (threads_.size() < others_) threads_.emplace_back([this] { work(); });
}

void FillThreads::grant() {
  FS_CHECK(granted_ - finished_ < ahead_);
  filled_[granted_++ % ahead_] = 0;
  limit_ += parts_;
  if (parts_ == 1 || sleeping_ == 0)
    return;  // one part: the caller has filled it before they are up
  {
    const std::lock_guard lock(mutex_);  // nobody is between looking and falling asleep
  }
  woken_.notify_all();
}

bool FillThreads::fill_one() {
  size_t part = next_;
  do {
    if (part >= limit_) return false;
  } while (!next_.compare_exchange_weak(part, part + 1));
  const size_t of_job = part - first_part_, piece = of_job / parts_;
  fill_(piece, of_job % parts_);
  ++filled_[piece % ahead_];
  return true;
}

void FillThreads::finish() {
  FS_CHECK(finished_ < granted_);
  while (filled_[finished_ % ahead_] < parts_)
    if (!fill_one()) std::this_thread::yield();
  ++finished_;
}

void FillThreads::work() {
  for (;;) {
    for (int look = 0; look < kLooks; ++look)
      if (fill_one())
        look = 0;
      else
        std::this_thread::yield();
    std::unique_lock lock(mutex_);
    ++sleeping_;
    woken_.wait(lock, [this] { return stop_ || next_ < limit_; });
    --sleeping_;
    if (stop_) return;
  }
}

}  // namespace fastserve::gpu
