// One block of emulated CUDA threads: fibers of one OS thread that meet at barriers.
//
// Between two meeting points a fiber runs to completion, in an order that the test chooses; a
// missing barrier shows as a wrong answer under one of the orders, and as a race under
// ThreadSanitizer.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <source_location>
#include <string>
#include <vector>

#include "gpu/simt/sanitizers.h"

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace fastserve::simt {

/// kLockstep: all warps advance together. The others run one warp as far as it gets before the
/// next.
enum class Order : uint8_t { kLockstep, kForward, kReverse, kShuffled };

/// Bytes that copies have taken over the bus.
struct Traffic {
  std::atomic<uint64_t> in = 0, out = 0;
};

struct Options {
  Order order = Order::kForward;
  uint64_t seed = 1;   ///< of kShuffled
  int os_threads = 1;  ///< blocks run side by side: races between blocks show under TSan
  /// A cp.async may land any time between its issue and the wait for it. Late shows a missing wait,
  /// early a missing barrier before the issue.
  bool early_copies = false;
  size_t shared_memory = 227 << 10;  ///< bytes that a block may ask for; a smaller card has less
  size_t memory = size_t{8} << 30;   ///< bytes of the card
  /// Kernels are refused pointers to the host's memory, as by a card. Off where a test of one
  /// operation keeps its operands on the heap.
  bool own_memory = false;
  std::shared_ptr<Traffic> traffic = nullptr;  ///< counts copies, when set
  int64_t launches = 0;     ///< that succeed before the card is lost; 0: it never is
  int64_t graph_parts = 0;  ///< most launches and copies that a graph can hold; 0: any number
};

enum class FiberState : uint8_t { kReady, kInWarp, kAtBarrier, kAtGrid, kDone };

struct AsyncCopy {
  void* to;
  const void* from;
  int bytes, size;  ///< copied, and written: what lies between becomes zero
  unsigned group;   ///< lands when this group is waited for
};

struct Fiber {
  void* stack_pointer = nullptr;
  void* stack = nullptr;
  dim3 index;
  unsigned linear = 0;
  FiberState state = FiberState::kReady;
  std::source_location at;
  bool waited = false;  // for the kernels before
  unsigned arrivals = 0;
  unsigned some = 0;  // threads that meet at the barrier it waits at; 0: all of the block
  void* asan_stack = nullptr;
  void* tsan_fiber = nullptr;
  std::vector<AsyncCopy> copies;  // issued and not landed
  unsigned copy_group = 0;        // the one that is open
};

/// Lanes that are gathering for one collective.
struct Gathering {
  uint32_t mask = 0, arrived = 0;
  int operation = 0;
  unsigned generation = 0;
  char order[2];  // tokens for TSan
  void* arguments[32];
};
/// A barrier of so many threads, one after another. Who comes to one finds the same turn, which the
/// last of them ends: some of a block's threads may meet more often than others.
struct Barrier {
  unsigned turn = 0;
  char order[2];  // tokens for TSan
};
struct Warp {
  Gathering gatherings[4];  // disjoint masks may gather at once
};

/// Owns:    its fibers' stacks and its shared memory, reused from block to block.
/// Threads: one OS thread at a time.
class Block {
 public:
  static constexpr size_t kStack = 64 * 1024;

  Block() = default;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block();

  /// Runs `body` once per thread of one block. Empty when all went well, else what is wrong with
  /// the kernel; the block is then not to be used again.
  std::string run(dim3 grid, dim3 block, dim3 index, size_t shared_bytes, const Options& options,
                  uint64_t seed, const std::function<void()>& body);

  /// The same in parts, for blocks that meet: begin(), then go_on() while it says that threads wait
  /// for the grid, whose `order` (two tokens for TSan) they share; finish() says what run() does.
  void begin(dim3 grid, dim3 block, dim3 index, size_t shared_bytes, const Options& options,
             uint64_t seed, const std::function<void()>& body, char* order);
  bool go_on(const Options& options);
  std::string finish();

  // What the CUDA vocabulary reads.
  Fiber* current = nullptr;
  dim3 index, shape, grid;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  bool early_copies = false;
  static constexpr size_t kMostWarps = 32;
  Barrier barriers[kMostWarps + 1];  ///< of the first n warps; [0]: of all threads
  /// For TSan, of the barrier of the first `threads` that is next, or of all (0).
  char* order_of(unsigned threads) {
    Barrier& barrier = barriers[threads / 32];
    return &barrier.order[barrier.turn & 1];
  }
  char* grid_order = nullptr;  ///< null: the blocks do not meet
  char wait_order = 0;         ///< of fibers that wait for the grid, which may end without them
  std::string failure;

  /// Stops the current fiber with what is wrong, and where it stands; the block ends. The fiber
  /// never goes on: whoever calls holds nothing that would have to be given back.
  void fail(const char* what);
  /// From a fiber back to the scheduler.
  void leave(bool finished = false);

 private:
  friend void fiber_entry();
  void prepare();
  void drop_stacks();
  void enter(Fiber& fiber);
  bool pass(unsigned low, unsigned high, const Options& options);
  void advance(const Options& options);
  bool open_barrier_of_some();
  void open_barrier();
  void check_shared();

  std::vector<unsigned> order_;
  std::mt19937_64 random_;
  size_t shared_bytes_ = 0;
  const std::function<void()>* body_ = nullptr;
  void* scheduler_ = nullptr;
  void* scheduler_asan_ = nullptr;
  void* scheduler_tsan_ = nullptr;
  const void* scheduler_bottom_ = nullptr;
  size_t scheduler_size_ = 0;
  char run_order_ = 0;
  unsigned char* stacks_ = nullptr;
  size_t stack_count_ = 0;
  std::vector<void*> tsan_fibers_;
};

/// The block whose fiber is running on this OS thread.
inline thread_local Block* running = nullptr;

/// "thread (3,0,0) at file:line", of a waiting fiber.
std::string where(const Fiber& fiber);

/// All lanes named in `mask` meet; the last to come runs `act` on all their arguments.
void collective(uint32_t mask, int operation, void* argument,
                void (*act)(uint32_t mask, void** arguments), std::source_location at);

/// Runs grids of blocks, whose fibers it keeps from one to the next.
/// `together`: the blocks may meet, so all of them are there at once, on one OS thread.
/// Threads: any; launches from several run side by side.
class Grid {
 public:
  /// Empty, or what is wrong with the kernel.
  std::string run(dim3 grid, dim3 block, size_t shared_bytes, const Options& options,
                  const std::function<void()>& body, bool together = false);

 private:
  std::unique_ptr<Block> take();
  void give_back(std::unique_ptr<Block> block);
  std::string run_together(dim3 grid, dim3 block, size_t shared_bytes, const Options& options,
                           const std::function<void()>& body);

  std::mutex mutex_;
  std::vector<std::unique_ptr<Block>> spare_;
};

}  // namespace fastserve::simt
