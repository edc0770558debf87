#include "gpu/simt/block.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

namespace fastserve::simt {
namespace {

constexpr size_t kGuard = 64;
constexpr unsigned char kGuardByte = 0xa5, kPoison = 0xff;  // float NaN, int -1

unsigned count(const dim3& d) { return d.x * d.y * d.z; }

}  // namespace

std::string where(const Fiber& fiber) {
  const dim3& i = fiber.index;
  return "thread (" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) +
         ") at " + fiber.at.file_name() + ":" + std::to_string(fiber.at.line());
}

void Block::fail(const char* what) {
  {
    Quiet quiet;
    failure = std::string(what) + ": " + where(*current);
  }
  release(&run_order_);
  leave();
}

/// Runs the ready ones of fibers [low, high) once, in the chosen order. False when there was none.
bool Block::pass(unsigned low, unsigned high, const Options& options) {
  for (unsigned i = low; i < high; ++i)
    order_[i] = options.order == Order::kReverse ? high - 1 - (i - low) : i;
  if (options.order == Order::kShuffled)
    std::shuffle(order_.begin() + low, order_.begin() + high, random_);
  bool ran = false;
  for (unsigned i = low; i < high && failure.empty(); ++i) {
    Fiber& fiber = fibers[order_[i]];
    if (fiber.state != FiberState::kReady) continue;
    ran = true;
    enter(fiber);
  }
  return ran;
}

/// Runs fibers until none is ready.
void Block::advance(const Options& options) {
  const unsigned n = static_cast<unsigned>(fibers.size());
  if (options.order == Order::kLockstep) {
    while (failure.empty() && pass(0, n, options)) {
    }
    return;
  }
  std::vector<unsigned> order((n + 31) / 32);
  for (unsigned w = 0; w < order.size(); ++w) order[w] = w;
  if (options.order == Order::kReverse) std::reverse(order.begin(), order.end());
  if (options.order == Order::kShuffled) std::shuffle(order.begin(), order.end(), random_);
  for (const unsigned w : order)
    while (failure.empty() && pass(w * 32, std::min(n, w * 32 + 32), options)) {
    }
}

/// Nobody is ready. True: the first threads of the block, as many as their barrier says, wait at
/// it.
bool Block::open_barrier_of_some() {
  const unsigned some = fibers.front().some;
  if (some == 0 || some > fibers.size() || fibers.front().state != FiberState::kAtBarrier)
    return false;
  for (unsigned i = 0; i < some; ++i)
    if (fibers[i].state != FiberState::kAtBarrier || fibers[i].some != some ||
        fibers[i].at.line() != fibers.front().at.line())
      return false;
  for (unsigned i = 0; i < some; ++i) {
    fibers[i].state = FiberState::kReady;
    fibers[i].some = 0;
  }
  ++barriers[some / 32].turn;
  return true;
}

/// Nobody is ready: all wait at one barrier, or the kernel is wrong.
void Block::open_barrier() {
  if (open_barrier_of_some()) return;
  const Fiber* first = nullptr;
  for (const Fiber& fiber : fibers) {
    if (fiber.state == FiberState::kInWarp)
      return void(failure = "a warp collective misses lanes of its mask: " + where(fiber));
    if (fiber.some != 0)
      return void(failure =
                      "a barrier of the first threads of a block misses some, or is met by "
                      "others: " +
                      where(fiber));
    if (fiber.state != FiberState::kAtBarrier) continue;
    if (!first) first = &fiber;
    if (fiber.at.line() != first->at.line())
      return void(failure = "divergent __syncthreads: " + where(*first) + " and " + where(fiber));
  }
  for (Fiber& fiber : fibers) {
    if (fiber.state == FiberState::kDone)
      return void(failure = "__syncthreads after a thread has ended: " + where(*first));
    fiber.state = FiberState::kReady;
  }
  ++barriers[0].turn;
}

void Block::check_shared() {
  const auto guard = shared.begin() + static_cast<ptrdiff_t>(shared_bytes_);
  if (std::any_of(guard, shared.end(), [](unsigned char b) { return b != kGuardByte; }))
    failure = "shared memory was written past its " + std::to_string(shared_bytes_) + " bytes";
}

void Block::begin(dim3 grid_shape, dim3 block_shape, dim3 block_index, size_t shared_bytes,
                  const Options& options, uint64_t seed, const std::function<void()>& body,
                  char* order) {
  const Quiet quiet;
  random_.seed(seed);
  grid = grid_shape;
  shape = block_shape;
  index = block_index;
  body_ = &body;
  grid_order = order;
  early_copies = options.early_copies;
  shared_bytes_ = shared_bytes;
  shared.assign(shared_bytes, kPoison);
  shared.resize(shared_bytes + kGuard, kGuardByte);
  fibers.assign(count(shape), {});
  warps.assign((fibers.size() + 31) / 32, {});
  prepare();
}

bool Block::go_on(const Options& options) {
  const Quiet quiet;
  Block* const outer = running;
  running = this;
  release(&run_order_);
  const auto done = [](const Fiber& f) { return f.state == FiberState::kDone; };
  const auto waits = [](const Fiber& f) { return f.state == FiberState::kAtGrid; };
  for (Fiber& fiber : fibers)
    if (fiber.state == FiberState::kAtGrid) fiber.state = FiberState::kReady;
  bool meets = false;
  while (failure.empty() && !meets) {
    advance(options);
    if (!failure.empty() || std::all_of(fibers.begin(), fibers.end(), done)) break;
    meets = std::any_of(fibers.begin(), fibers.end(), waits);
    if (!meets) open_barrier();
  }
  acquire(&run_order_);
  running = outer;
  return meets;
}

std::string Block::finish() {
  const Quiet quiet;
  // Where a kernel failed, fibers that never go on are ordered before what follows by where they
  // wait.
  for (Barrier& barrier : barriers)
    for (char& order : barrier.order) acquire(&order);
  acquire(&wait_order);
  for (Warp& warp : warps)
    for (Gathering& group : warp.gatherings)
      for (char& order : group.order) acquire(&order);
  if (failure.empty()) check_shared();
  if (failure.empty()) return {};
  return failure + " [block " + std::to_string(index.x) + "," + std::to_string(index.y) + "," +
         std::to_string(index.z) + "]";
}

std::string Block::run(dim3 grid_shape, dim3 block_shape, dim3 block_index, size_t shared_bytes,
                       const Options& options, uint64_t seed, const std::function<void()>& body) {
  begin(grid_shape, block_shape, block_index, shared_bytes, options, seed, body, nullptr);
  go_on(options);
  return finish();
}

namespace {

struct Met {
  const char* wrong;  ///< or null
  bool last;
  char* order;
};

/// Puts the current lane to the others of its collective; the last one acts for all.
Met meet(uint32_t mask, int operation, void* argument, void (*act)(uint32_t mask, void** arguments),
         std::source_location at) {
  const Quiet quiet;
  Block& block = *running;
  Fiber& me = *block.current;
  const unsigned lane = me.linear & 31, first = me.linear & ~31u;
  const size_t lanes = std::min<size_t>(32, block.fibers.size() - first);
  if (lanes < 32) mask &= (1u << lanes) - 1;
  me.at = at;
  if (!(mask >> lane & 1)) return {"a lane is not in the mask it calls with", false, nullptr};
  Gathering* group = nullptr;
  for (Gathering& g : block.warps[me.linear / 32].gatherings)
    if (g.arrived && g.mask == mask) group = &g;
  if (!group)
    for (Gathering& g : block.warps[me.linear / 32].gatherings)
      if (!g.arrived) {
        group = &g;
        g.mask = mask;
        g.operation = operation;
        break;
      }
  if (!group || group->operation != operation)
    return {"lanes of a warp meet in different collectives", false, nullptr};
  group->arguments[lane] = argument;
  group->arrived |= 1u << lane;
  char* const order = &group->order[group->generation & 1];
  release(order);
  if (group->arrived != mask) {
    me.state = FiberState::kInWarp;
    return {nullptr, false, order};
  }
  acquire(order);
  act(mask, group->arguments);
  for (unsigned l = 0; l < 32; ++l)
    if ((mask >> l & 1) && l != lane) block.fibers[first + l].state = FiberState::kReady;
  release(order);
  group->arrived = 0;
  ++group->generation;
  return {nullptr, true, order};
}

}  // namespace

void collective(uint32_t mask, int operation, void* argument,
                void (*act)(uint32_t mask, void** arguments), std::source_location at) {
  // Fibers are left outside of Quiet: one that never goes on must not end in it.
  const Met met = meet(mask, operation, argument, act, at);
  if (met.wrong) running->fail(met.wrong);
  if (!met.last) running->leave();
  acquire(met.order);
}

namespace {

dim3 index_of(size_t at, const dim3& grid) {
  return dim3(static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
              static_cast<unsigned>(at / (size_t{grid.x} * grid.y)));
}
uint64_t seed_of(const Options& options, size_t i) {
  return options.seed * 0x9E3779B97F4A7C15ull + i;
}

}  // namespace

std::unique_ptr<Block> Grid::take() {
  const std::lock_guard lock(mutex_);
  if (spare_.empty()) return std::make_unique<Block>();
  auto one = std::move(spare_.back());
  spare_.pop_back();
  return one;
}

void Grid::give_back(std::unique_ptr<Block> block) {
  const std::lock_guard lock(mutex_);
  spare_.push_back(std::move(block));
}

std::string Grid::run(dim3 grid, dim3 block, size_t shared_bytes, const Options& options,
                      const std::function<void()>& body, bool together) {
  if (together) return run_together(grid, block, shared_bytes, options, body);
  const size_t blocks = count(grid);
  std::atomic<size_t> next = 0;
  std::atomic<bool> failed = false;
  std::string failure;
  const auto work = [&] {
    auto one = take();
    for (size_t i; !failed && (i = next++) < blocks;) {
      const size_t at = options.order == Order::kReverse ? blocks - 1 - i : i;
      const std::string wrong = one->run(grid, block, index_of(at, grid), shared_bytes, options,
                                         seed_of(options, i), body);
      if (wrong.empty()) continue;
      const std::lock_guard lock(mutex_);
      if (!failed.exchange(true)) failure = wrong;
      return;  // its fibers stand in the middle of the kernel: not to be used again
    }
    give_back(std::move(one));
  };
  if (options.os_threads <= 1) {
    work();
  } else {
    std::vector<std::thread> threads;
    for (int i = 0; i < options.os_threads; ++i) threads.emplace_back(work);
    for (std::thread& thread : threads) thread.join();
  }
  return failure;
}

std::string Grid::run_together(dim3 grid, dim3 block, size_t shared_bytes, const Options& options,
                               const std::function<void()>& body) {
  std::vector<std::unique_ptr<Block>> blocks(count(grid));
  char order[2] = {};
  for (size_t i = 0; i < blocks.size(); ++i) {
    blocks[i] = take();
    blocks[i]->begin(grid, block, index_of(i, grid), shared_bytes, options, seed_of(options, i),
                     body, order);
  }
  std::mt19937_64 random(options.seed);
  std::vector<size_t> turn(blocks.size());
  for (size_t i = 0; i < turn.size(); ++i) turn[i] = i;
  if (options.order == Order::kReverse) std::reverse(turn.begin(), turn.end());
  std::string failure;
  for (size_t meeting = blocks.size(); meeting == blocks.size() && failure.empty();) {
    if (options.order == Order::kShuffled) std::shuffle(turn.begin(), turn.end(), random);
    meeting = 0;
    for (const size_t i : turn) {
      if (blocks[i]->go_on(options)) {
        ++meeting;
        continue;
      }
      failure = blocks[i]->finish();
      if (!failure.empty()) break;
    }
    if (failure.empty() && meeting > 0 && meeting < blocks.size())
      failure = "blocks of a grid have ended while others wait for them";
  }
  for (char& token : order) acquire(&token);
  for (auto& one : blocks)
    if (failure.empty())
      give_back(std::move(one));
    else
      one->finish();  // fibers stand in the middle of the kernel: it is not used again
  return failure;
}

}  // namespace fastserve::simt
