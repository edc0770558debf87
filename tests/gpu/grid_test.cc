// Blocks of one kernel that meet, barriers of some of a block's threads, and who breaks their
// rules.
#include <doctest/doctest.h>

#include <vector>

#include "gpu/launch.h"
#include "tests/gpu/emulator_rules.h"

namespace fastserve::gpu {
namespace {

using simt::Options;
using simt::Order;

constexpr int kBlocks = 3, kThreads = 64, kRounds = 5;

enum class Fault { kNone, kNoWait, kOneBlockEnds, kOneThreadEnds };

/// Each block adds up what all blocks left in the round before, by its first warp alone.
template <Fault kFault>
__global__ void pass_on(int* numbers, uint32_t* arrived) {  // [kRounds + 1][kBlocks]
  FS_SHARED(int, sum);
  uint32_t before = 0;
  for (int round = 0; round < kRounds; ++round) {
    if (threadIdx.x < 32) {
      if (round > 0 && kFault != Fault::kNoWait) wait_for_grid<32>(arrived, before);
      if (threadIdx.x == 0) {
        *sum = 0;
        for (int b = 0; b < kBlocks; ++b) *sum += numbers[round * kBlocks + b];
      }
      sync_first<32>();
      if (threadIdx.x == 31) numbers[(round + 1) * kBlocks + int(blockIdx.x)] = *sum + 1;
    }
    if (kFault == Fault::kOneBlockEnds && blockIdx.x == 1 && round == 2) return;
    if (kFault == Fault::kOneThreadEnds && threadIdx.x == 40 && round == 2) return;
    before = arrive_at_grid(arrived);
  }
  if (threadIdx.x < 32) wait_for_grid<32>(arrived, before);
}

/// The first warp alone is to meet; the second does, too, or a lane of the first does not.
template <bool kTooMany>
__global__ void meet_wrongly(int* out) {
  if (kTooMany ? threadIdx.x < 64 : threadIdx.x != 3 && threadIdx.x < 32) sync_first<32>();
  __syncthreads();
  if (threadIdx.x == 0) *out = 1;
}

struct Outcome {
  std::vector<int> numbers;
  std::string wrong;
};

template <Fault kFault>
Outcome passed_on(const Options& options, bool together = true) {
  const auto runtime = simt::make_emulated_runtime(options);
  Outcome outcome{std::vector<int>((kRounds + 1) * kBlocks, 1), ""};
  uint32_t arrived = 0;
  const Launch how{"pass_on", {kBlocks}, {kThreads}, sizeof(int)};
  if (together)
    launch_together(*runtime, how, pass_on<kFault>, outcome.numbers.data(), &arrived);
  else
    launch(*runtime, how, pass_on<kFault>, outcome.numbers.data(), &arrived);
  if (const Status status = runtime->sync(); !status.ok()) outcome.wrong = status.error().message();
  return outcome;
}

}  // namespace

TEST_CASE("blocks that meet see what the others did before, in any order") {
  std::vector<int> expected((kRounds + 1) * kBlocks, 1);
  for (int round = 0; round < kRounds; ++round)
    for (int b = 0; b < kBlocks; ++b)
      expected[size_t((round + 1) * kBlocks + b)] = kBlocks * expected[size_t(round * kBlocks)] + 1;
  for (const Options& options : kOrders) {
    const Outcome outcome = passed_on<Fault::kNone>(options);
    CHECK(outcome.wrong == "");
    CHECK(outcome.numbers == expected);
  }
}

TEST_CASE("a block that does not wait for the others shows in some order" * kRaces) {
  int wrong = 0;
  for (const Options& options : kOrders)
    wrong += passed_on<Fault::kNoWait>(options).numbers != passed_on<Fault::kNone>(options).numbers;
  CHECK(wrong > 0);
}

TEST_CASE("a grid's barrier that is not met by all, or where it cannot be, is an error") {
  CHECK(mentions(passed_on<Fault::kNone>({}, false).wrong, "need not be there at once"));
  CHECK(mentions(passed_on<Fault::kOneBlockEnds>({}).wrong, "while others wait for them"));
  CHECK(mentions(passed_on<Fault::kOneThreadEnds>({}).wrong, "after a thread has ended"));
}

TEST_CASE(
    "a barrier of a block's first threads that others meet, or not all of them, is an error") {
  for (const bool too_many : {true, false}) {
    const auto runtime = simt::make_emulated_runtime();
    int out = 0;
    launch(*runtime, {"meet_wrongly", {1}, {96}},
           too_many ? meet_wrongly<true> : meet_wrongly<false>, &out);
    const Status status = runtime->sync();
    REQUIRE_FALSE(status.ok());
    CHECK(mentions(status.error().message(), "first threads of a block"));
    CHECK(out == 0);
  }
}

}  // namespace fastserve::gpu
