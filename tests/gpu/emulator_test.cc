// What the emulator catches: kernels that break a rule of the machine.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <vector>

#include "gpu/kernels/reduce.cuh"
#include "gpu/launch.h"
#include "gpu/simt/tensor_core.h"
#include "tests/gpu/emulator_rules.h"

namespace fastserve::gpu {
namespace {

using simt::Options;
using simt::Order;

/// A block's sum, with one of its barriers left out, an early exit, or too little shared memory.
enum class Bug { kNone, kNoBarrier, kDivergent, kExit, kPastEnd, kNarrowMask };

template <Bug kBug>
__global__ void sum_block(const float* x, float* out, int n) {
  FS_SHARED(float, room);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  if (kBug == Bug::kExit && threadIdx.x >= 64) return;
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
  if (kBug == Bug::kNarrowMask && lane < 16)
    sum = __shfl_xor_sync(0xffffu, sum, 16);
  else
    sum = warp_reduce<Add>(sum);
  if (lane == 0) room[kBug == Bug::kPastEnd ? warp + 8 : warp] = sum;
  if (kBug == Bug::kDivergent && warp == 0) __syncthreads();
  if (kBug != Bug::kNoBarrier) __syncthreads();
  float all = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) all += room[w];
  if (threadIdx.x == 0) *out = all;
}

struct Outcome {
  float sum;
  std::string wrong;  ///< empty: the kernel went well
};

template <Bug kBug>
Outcome sum_of_ones(const Options& options) {
  const auto runtime = simt::make_emulated_runtime(options);
  std::vector<float> x(300, 1.0f);
  float out = -1;
  launch(*runtime, {"sum_block", {1}, {128}, 4 * sizeof(float)}, sum_block<kBug>, x.data(), &out,
         static_cast<int>(x.size()));
  const Status status = runtime->sync();
  return {out, status.ok() ? "" : status.error().message()};
}

/// Threads from `waiting` on end without a wait for the kernels before.
__global__ void count_waiting(int* out, int waiting) {
  if (int(threadIdx.x) >= waiting) return;
  wait_for_previous();
  let_next_begin();
  out[threadIdx.x] = 1;
}

/// d [16, 8] of ones by ones, where the first two of every four neighbours are there or as `places`
/// says.
__global__ void multiply_sparse(uint32_t places, int* out) {
  const uint32_t ones = 0x01010101, a[4] = {ones, ones, ones, ones};
  int d[4] = {};
  mma_sparse_s8(d, a, a, places);
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = d[i];
}

/// Two tiles, one copied while the other is added up.
template <bool kWait, bool kBarrier>
__global__ void add_tiles(const float* x, float* out, int tiles) {
  FS_SHARED(float, room);  // [2][128]
  const int next = (threadIdx.x + 32) % 128;
  const auto start = [&](int tile) {
    if (threadIdx.x < 32)
      copy_async(room + tile % 2 * 128 + threadIdx.x * 4, x + tile * 128 + threadIdx.x * 4, 16);
  };
  float sum = 0;
  start(0);
  copy_commit();
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) start(tile + 1);
    copy_commit();
    copy_wait<kWait ? 1 : 2>();
    __syncthreads();
    sum += room[tile % 2 * 128 + next];
    if (kBarrier) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

template <bool kWait, bool kBarrier>
bool tiles_add_up(const Options& options) {
  const auto runtime = simt::make_emulated_runtime(options);
  alignas(16) float x[4 * 128];
  float out[128];
  for (int i = 0; i < 512; ++i) x[i] = static_cast<float>(i);
  launch(*runtime, {"add_tiles", {1}, {128}, 2 * 128 * sizeof(float)}, add_tiles<kWait, kBarrier>,
         static_cast<const float*>(x), static_cast<float*>(out), 4);
  CHECK(runtime->sync().ok());
  for (int i = 0; i < 128; ++i)
    if (out[i] != static_cast<float>(4 * ((i + 32) % 128) + 6 * 128)) return false;
  return true;
}

}  // namespace

TEST_CASE("a kernel that keeps the rules gives its result in any order of threads") {
  for (const Options& options : kOrders) {
    const Outcome outcome = sum_of_ones<Bug::kNone>(options);
    CHECK(outcome.wrong == "");
    CHECK(outcome.sum == 300);
    CHECK(tiles_add_up<true, true>(options));
  }
}

TEST_CASE("a missing barrier gives a wrong sum in some order of threads" * kRaces) {
  int wrong = 0;
  for (const Options& options : kOrders) wrong += sum_of_ones<Bug::kNoBarrier>(options).sum != 300;
  CHECK(wrong > 0);
}

TEST_CASE("a missing wait for a copy shows when copies land late, a missing barrier when early" *
          kRaces) {
  CHECK_FALSE(tiles_add_up<false, true>({.order = Order::kForward}));
  int wrong = 0;
  for (Options options : kOrders) {
    options.early_copies = true;
    wrong += !tiles_add_up<true, false>(options);
  }
  CHECK(wrong > 0);
}
TEST_CASE("a barrier that some threads do not reach is an error with its line") {
  CHECK(mentions(sum_of_ones<Bug::kDivergent>({}).wrong, "divergent __syncthreads"));
  CHECK(mentions(sum_of_ones<Bug::kDivergent>({}).wrong, "emulator_test.cc:"));
  CHECK(mentions(sum_of_ones<Bug::kExit>({}).wrong, "after a thread has ended"));
}

#if !defined(__SANITIZE_ADDRESS__)
TEST_CASE("a write past the shared memory that the launch asked for is an error") {
  CHECK(mentions(sum_of_ones<Bug::kPastEnd>({}).wrong, "past its 16 bytes"));
}
#endif

TEST_CASE("a thread of a chained kernel that ends without waiting for those before is an error") {
  const auto runtime = simt::make_emulated_runtime();
  std::vector<int> out(64, 0);
  launch_chained(*runtime, {"count_waiting", {1}, {64}}, count_waiting, out.data(), 64);
  CHECK(runtime->sync().ok());
  CHECK(out == std::vector<int>(64, 1));
  launch_chained(*runtime, {"count_waiting", {1}, {64}}, count_waiting, out.data(), 63);
  const Status status = runtime->sync();
  REQUIRE_FALSE(status.ok());
  CHECK(mentions(status.error().message(), "count_waiting"));
  CHECK(mentions(status.error().message(), "without wait_for_previous()"));
  launch(*runtime, {"count_waiting", {1}, {64}}, count_waiting, out.data(), 63);
  CHECK(runtime->sync().ok());  // on its own it need not
}

TEST_CASE("a shuffle that reads outside its mask is an error") {
  CHECK(sum_of_ones<Bug::kNarrowMask>({}).wrong != "");
}

TEST_CASE("a sparse product whose places are not in order is an error") {
  const auto runtime = simt::make_emulated_runtime();
  std::vector<int> out(128, -1);
  launch(*runtime, {"multiply_sparse", {1}, {32}}, multiply_sparse, 0x44444444u, out.data());
  CHECK(runtime->sync().ok());
  CHECK(out == std::vector<int>(128, 32));
  for (const uint32_t places : {0u, 0x44444144u, 0x4444444fu}) {
    launch(*runtime, {"multiply_sparse", {1}, {32}}, multiply_sparse, places, out.data());
    const Status status = runtime->sync();
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().what.find("places that are not in order") != std::string::npos);
  }
}

TEST_CASE("a failure is told once, by sync, with the kernel's name; memory is refused with sizes") {
  const auto runtime = simt::make_emulated_runtime();
  float x = 1, out = 0;
  launch(*runtime, {"sum_block", {1}, {128}, 4 * sizeof(float)}, sum_block<Bug::kExit>,
         static_cast<const float*>(&x), &out, 1);
  const Status status = runtime->sync();
  REQUIRE(!status.ok());
  CHECK(mentions(status.error().message(), "the kernel sum_block failed"));
  CHECK(runtime->sync().ok());
  launch(*runtime, {"sum_block", {1}, {128}, size_t{1} << 20}, sum_block<Bug::kNone>,
         static_cast<const float*>(&x), &out, 1);
  CHECK(mentions(runtime->sync().error().message(), "bytes of shared memory"));
  const Result<void*> memory = runtime->allocate(size_t{1} << 50);
  REQUIRE(!memory.ok());
  CHECK(memory.error().code == ErrorCode::kResourceExhausted);
}

TEST_CASE("memory is zeroed, told apart by what is free, and a write past its end is an error") {
  Options options;
  options.memory = 1 << 20;
  const auto runtime = simt::make_emulated_runtime(options);
  const size_t all = runtime->available();
  CHECK(all == size_t{1} << 20);
  std::vector<void*> taken;
  for (const size_t bytes : {size_t{100}, size_t{5000}, size_t{70000}})
    taken.push_back(runtime->allocate(bytes).value());
  CHECK(runtime->available() < all - 75000);
  std::vector<char> ones(5000, 1), seen(5000, 7);
  runtime->copy_in(taken[1], ones.data(), ones.size());
  runtime->free(taken[1]);
  void* const again = runtime->allocate(4000).value();
  CHECK(again == taken[1]);
  runtime->copy_out(seen.data(), again, 4000);
  CHECK(std::count(seen.begin(), seen.begin() + 4000, 0) == 4000);
  const Result<void*> refused = runtime->allocate(1 << 20);
  REQUIRE(!refused.ok());
  CHECK(mentions(refused.error().message(), "1.0 MiB"));
  CHECK(mentions(refused.error().message(), "are free"));
  for (void* const memory : {taken[0], again, taken[2]}) runtime->free(memory);
  CHECK(runtime->available() == all);
  CHECK(runtime->sync().ok());
#if !defined(__SANITIZE_ADDRESS__)
  void* const small = runtime->allocate(100).value();
  runtime->copy_in(small, ones.data(), 101);
  runtime->free(small);
  CHECK(mentions(runtime->sync().error().message(), "wrote past 100 bytes"));
#endif
}

TEST_CASE("the host that touches the card's memory crashes") {
  const auto runtime = simt::make_emulated_runtime();
  auto* const memory = static_cast<volatile float*>(runtime->allocate(64).value());
  for (const bool writes : {false, true}) {
    const pid_t child = fork();
    if (child == 0) {
      for (const int signal : {SIGSEGV, SIGBUS}) std::signal(signal, SIG_DFL);
      if (writes)
        *memory = 1;
      else
        static_cast<void>(*memory);
      _exit(0);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
  }
  runtime->free(const_cast<float*>(memory));
}

TEST_CASE("a kernel that is given the host's memory is refused where a card would crash") {
  Options options;
  options.own_memory = true;
  const auto runtime = simt::make_emulated_runtime(options);
  constexpr int kCount = 300;
  static float x[kCount + 1];  // AddressSanitizer's heap lies where addresses look like two numbers
  std::fill(std::begin(x), std::end(x), 1.0f);
  auto* const out = static_cast<float*>(runtime->allocate(64).value());
  auto* const on_card = static_cast<float*>(runtime->allocate(sizeof x).value());
  runtime->copy_in(on_card, x, sizeof x);
  const auto sum = [&](const float* from) {
    launch(*runtime, {"sum_block", {1}, {128}, 4 * sizeof(float)}, sum_block<Bug::kNone>, from, out,
           kCount);
    return runtime->sync();
  };
  CHECK(sum(on_card).ok());
  const Status refused = sum(x + 1);
  REQUIRE_FALSE(refused.ok());
  CHECK(mentions(refused.error().message(), "given memory of the host"));
  for (void* const memory : {static_cast<void*>(out), static_cast<void*>(on_card)})
    runtime->free(memory);
}

TEST_CASE("a card that is lost stays lost") {
  Options options;
  options.launches = 1;
  const auto runtime = simt::make_emulated_runtime(options);
  const std::vector<float> x(300, 1.0f);
  float out = 0;
  for (const bool works : {true, false, false}) {
    launch(*runtime, {"sum_block", {1}, {128}, 4 * sizeof(float)}, sum_block<Bug::kNone>, x.data(),
           &out, 300);
    const Status status = runtime->sync();
    CHECK(status.ok() == works);
    if (!works) CHECK(status.error().code == ErrorCode::kUnavailable);
  }
}

}  // namespace fastserve::gpu
