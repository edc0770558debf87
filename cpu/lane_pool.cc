#include "cpu/lane_pool.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "base/check.h"

namespace fastserve {
namespace {

constexpr int kSpins = 4000;  // tens of microseconds: an op's neighbour follows within them
constexpr int kYields = 400;  // then let whoever wants the core have it, and look again
constexpr uint64_t kItemMask = 0xffffffff;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/// Lets threads sleep until a 32-bit counter moves, with no system call while nobody sleeps.
class SleepingPlace {
 public:
  /// Sleeps unless `ready`, which is asked again once the wake-up can no longer be missed.
  template <class Ready>
  void sleep_unless(const Ready& ready) {
    sleepers_.fetch_add(1);
    const uint32_t seen = moves_.load();
    if (!ready()) syscall(SYS_futex, address(), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
    sleepers_.fetch_sub(1);
  }
  /// After what `ready` reads has been written.
  void wake() {
    moves_.fetch_add(1);
    if (sleepers_.load() > 0)
      syscall(SYS_futex, address(), FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
  }

 private:
  uint32_t* address() { return reinterpret_cast<uint32_t*>(&moves_); }
  std::atomic<uint32_t> moves_{0};
  std::atomic<int> sleepers_{0};
};

template <class Ready>
void wait_until(const Ready& ready, SleepingPlace& place) {
  for (int i = 0; i < kSpins; i++) {
    if (ready()) return;
    pause();
  }
  for (int i = 0; i < kYields; i++) {
    if (ready()) return;
    sched_yield();
  }
  while (!ready()) place.sleep_unless(ready);
}

}  // namespace

/// One run is a ticket: its number above, the items nobody has claimed below. Claiming takes one
/// off by compare-and-swap. Until a claimed item is reported done the caller cannot start the next
/// run, so whoever holds one may read the job. A lane that is late for a run finds no items and
/// does no harm: nobody waits for it.
class LanePool::State {
 public:
  explicit State(int lanes) : lanes_(lanes) {
    for (int lane = 1; lane < lanes; lane++) threads_.emplace_back([this, lane] { serve(lane); });
  }
  ~State() {
    stop_.store(true);
    work_.wake();
    for (std::thread& thread : threads_) thread.join();
  }
  int lanes() const { return lanes_; }

  void run(int64_t items, const void* body, Call call) {
    if (lanes_ == 1 || items <= 1) {
      for (int64_t i = 0; i < items; i++) call(body, i, 0);
      return;
    }
    body_.store(body, std::memory_order_relaxed);
    call_.store(call, std::memory_order_relaxed);
    items_.store(items, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    number_++;
    ticket_.store(number_ << 32 | static_cast<uint64_t>(items), std::memory_order_release);
    work_.wake();
    work(0);
    wait_until([&] { return done_.load(std::memory_order_acquire) == items; }, finish_);
  }

 private:
  /// Claims and does items until none are left.
  void work(int lane) {
    int64_t finished = 0;
    for (;;) {
      uint64_t ticket = ticket_.load(std::memory_order_acquire);
      while ((ticket & kItemMask) != 0 &&
             !ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acquire)) {
      }
      const int64_t left = static_cast<int64_t>(ticket & kItemMask);
      if (left == 0) break;
      const int64_t items = items_.load(std::memory_order_relaxed);
      call_.load(std::memory_order_relaxed)(body_.load(std::memory_order_relaxed), items - left,
                                            lane);
      finished++;
    }
    if (finished == 0) return;
    // The caller may return, and even start another run, as soon as the last item is added.
    const int64_t items = items_.load(std::memory_order_relaxed);
    if (done_.fetch_add(finished, std::memory_order_acq_rel) + finished == items && lane != 0)
      finish_.wake();
  }

  void serve(int lane) {
    const auto ready = [this] {
      return (ticket_.load(std::memory_order_acquire) & kItemMask) != 0 || stop_.load();
    };
    for (;;) {
      wait_until(ready, work_);
      if (stop_.load()) return;
      work(lane);
    }
  }

  const int lanes_;
  uint64_t number_ = 0;
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<const void*> body_{nullptr};
  std::atomic<Call> call_{nullptr};
  std::atomic<int64_t> items_{0};
  std::atomic<bool> stop_{false};
  alignas(64) SleepingPlace work_;
  alignas(64) SleepingPlace finish_;
  std::vector<std::thread> threads_;
};

LanePool::LanePool(int lanes) {
  FS_CHECK(lanes >= 1);
  state_ = std::make_unique<State>(lanes);
}
LanePool::~LanePool() = default;

int LanePool::lanes() const { return state_->lanes(); }

void LanePool::run_erased(int64_t items, const void* body, Call call) {
  FS_CHECK(items >= 0 && items <= static_cast<int64_t>(kItemMask));
  state_->run(items, body, call);
}

}  // namespace fastserve
