// Fibers by hand: saved registers, a stack each, and what the sanitizers want to know of a switch.
#include <sys/mman.h>

#include <cstdlib>

#include "base/check.h"
#include "gpu/simt/block.h"

#if !defined(__x86_64__)
#error "the emulator switches fibers on x86-64 only"
#endif

extern "C" void fastserve_simt_switch(void** save, void* load);
asm(R"(
.text
.type fastserve_simt_switch,@function
fastserve_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastserve_simt_switch,.-fastserve_simt_switch
)");

namespace fastserve::simt {

/// What a sanitizer knows of frames that no fiber will return from goes with them: the addresses may
/// be another thread's stack next.
void Block::drop_stacks() {
  if (stacks_ == nullptr) return;
  mark_reachable(stacks_, stack_count_ * kStack);
  munmap(stacks_, stack_count_ * kStack);
}

Block::~Block() {
  drop_stacks();
#if defined(__SANITIZE_THREAD__)
  for (void* fiber : tsan_fibers_) __tsan_destroy_fiber(fiber);
#endif
}

__attribute__((no_sanitize("thread"))) void Block::leave([[maybe_unused]] bool finished) {
  Fiber& me = *current;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(finished ? nullptr : &me.asan_stack, scheduler_bottom_,
                                 scheduler_size_);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(scheduler_tsan_, __tsan_switch_to_fiber_no_sync);
#endif
  fastserve_simt_switch(&me.stack_pointer, scheduler_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(me.asan_stack, &scheduler_bottom_, &scheduler_size_);
#endif
}

namespace {
/// Read before the fiber is ordered behind whoever set it.
Block& running_block() {
  const Quiet quiet;
  return *running;
}
}  // namespace

/// It never returns, and its fiber is used again: were it instrumented, each use would leave one frame
/// more on what ThreadSanitizer takes for the fiber's stack, and each stack would be kept as new.
__attribute__((no_sanitize("thread"))) void fiber_entry() {
  Block& block = running_block();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_bottom_, &block.scheduler_size_);
#endif
  acquire(&block.run_order_);
  (*block.body_)();
  release(&block.run_order_);
  block.current->state = FiberState::kDone;
  block.leave(true);
  std::abort();
}

void Block::enter(Fiber& fiber) {
  current = &fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_asan_, fiber.stack, kStack);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber.tsan_fiber, __tsan_switch_to_fiber_no_sync);
#endif
  fastserve_simt_switch(&scheduler_, fiber.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_asan_, nullptr, nullptr);
#endif
}

void Block::prepare() {
  const size_t n = fibers.size();
  if (stack_count_ < n) {
    drop_stacks();
    void* const map = mmap(nullptr, n * kStack, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    FS_CHECK(map != MAP_FAILED);
    stacks_ = static_cast<unsigned char*>(map);
    stack_count_ = n;
    mark_reachable(stacks_, stack_count_ * kStack);  // whatever lay here before
  }
  order_.resize(n);
  for (unsigned i = 0; i < n; ++i) {
    Fiber& fiber = fibers[i];
    fiber.linear = i;
    fiber.index = dim3(i % shape.x, i / shape.x % shape.y, i / (shape.x * shape.y));
    fiber.stack = stacks_ + size_t{i} * kStack;
    // Staggered, so that the stacks do not meet in the same lines of the cache.
    void** top = reinterpret_cast<void**>(stacks_ + (size_t{i} + 1) * kStack - (i * 448u) % 16384u);
    *--top = nullptr;  // keeps the stack pointer at 8 modulo 16 on entry
    *--top = reinterpret_cast<void*>(&fiber_entry);
    top -= 6;  // the saved registers
    fiber.stack_pointer = top;
#if defined(__SANITIZE_THREAD__)
    if (tsan_fibers_.size() <= i) tsan_fibers_.push_back(__tsan_create_fiber(0));
    fiber.tsan_fiber = tsan_fibers_[i];
#endif
  }
#if defined(__SANITIZE_THREAD__)
  scheduler_tsan_ = __tsan_get_current_fiber();
#endif
}

}  // namespace fastserve::simt
