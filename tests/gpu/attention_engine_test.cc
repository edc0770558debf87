// A library's attention behind the narrow interface: when it is asked, and what it must leave.
#include "gpu/attention_engine.h"

#include <deque>

#include "gpu/kernels/attention.cuh"
#include "gpu/train_state.h"
#include "tests/cpu/attention_cases.h"
#include "tests/gpu/gpu_tests.h"
#include "tests/scratch.h"

namespace fastserve::harness {
namespace {

using gpu::AttentionEngine;
using gpu::AttentionKind;

struct Calls {
  int forward = 0, backward = 0;
  bool fails = false, takes_forward = true, takes_backward = true;
};

/// Stands for a library: our kernels' answer, with statistics as a library leaves them.
class StandIn final : public AttentionEngine {
 public:
  StandIn(gpu::Runtime& runtime, Calls& calls, std::string name = "stand-in-1")
      : runtime_(runtime), calls_(calls), name_(std::move(name)) {}
  std::string name() override { return name_; }
  uint64_t most_scratch() override { return 1000; }
  bool supports(const AttentionForward& op, Precision precision) override {
    return calls_.takes_forward && takes(op, precision);
  }
  bool supports(const AttentionBackward& op, Precision precision) override {
    return calls_.takes_backward && takes(op.forward, precision);
  }
  void forward(const AttentionForward& op, Precision precision) override {
    calls_.forward++;
    if (calls_.fails) return runtime_.report({ErrorCode::kInternal, "cannot", "a stand-in", ""});
    const int rows = op.starts.back(), heads = op.shape.heads, tokens = op.starts[1];
    std::vector<float> stats(size_t(heads) * size_t(rows) * 2), sums(size_t(heads) * size_t(rows));
    AttentionForward ours = op;
    ours.stats = stats.data();
    gpu::TrainState own(runtime_, {}, precision);
    gpu::attention_forward(own, ours);
    for (int row = 0; row < rows; row++)
      for (int h = 0; h < heads; h++)
        sums[size_t((row / tokens * heads + h) * tokens + row % tokens)] =
            stats[2 * size_t(h * rows + row)] / gpu::kLog2E;
    if (op.stats != nullptr)
      gpu::store_log_sums(runtime_, sums.data(), rows / tokens, tokens, heads, op.stats);
  }
  void backward(const AttentionBackward& op, Precision precision) override {
    calls_.backward++;
    if (calls_.fails) return runtime_.report({ErrorCode::kInternal, "cannot", "a stand-in", ""});
    const int rows = op.forward.starts.back(), heads = op.forward.shape.heads;
    const int tokens = op.forward.starts[1];
    std::vector<float> stats(size_t(heads) * size_t(rows) * 2), sums(size_t(heads) * size_t(rows));
    gpu::load_log_sums(runtime_, op.forward.stats, rows / tokens, tokens, heads, sums.data());
    for (int row = 0; row < rows; row++)
      for (int h = 0; h < heads; h++)
        stats[2 * size_t(h * rows + row)] =
            sums[size_t((row / tokens * heads + h) * tokens + row % tokens)] * gpu::kLog2E;
    AttentionBackward ours = op;
    ours.forward.stats = stats.data();
    gpu::TrainState own(runtime_, {}, precision);
    gpu::attention_backward(own, ours);
  }

 private:
  static bool takes(const AttentionForward& op, Precision precision) {
    return precision != Precision::kFloat32 && op.window == 0;
  }

  gpu::Runtime& runtime_;
  Calls& calls_;
  const std::string name_;
};

/// Says what it was told to say, one after another.
class ScriptedClock final : public Clock {
 public:
  explicit ScriptedClock(std::deque<int64_t> times) : times_(std::move(times)) {}
  Nanoseconds now() const override {
    REQUIRE_FALSE(times_.empty());
    const Nanoseconds now(times_.front());
    times_.pop_front();
    return now;
  }
  int64_t unix_seconds() const override { return 0; }
  bool done() const { return times_.empty(); }

 private:
  mutable std::deque<int64_t> times_;
};

const std::vector<AttentionKind> kShortAndLong = {{16, 8, 8, 2, 1}, {16, 64, 12, 1, 2}};

}  // namespace

TEST_CASE("attention by an engine, one way or both, gives the gradients that ours does") {
  Calls calls;
  auto runtime = simt::make_emulated_runtime();
  auto engine = std::make_unique<StandIn>(*runtime, calls);
  const auto with = gpu::make_gpu_device(std::move(runtime), nullptr, std::move(engine));
  const auto without = emulated_gpu();
  CHECK(with->numerics_id() == without->numerics_id() + "/stand-in-1");
  const auto run = [](Device& device, int window) {
    const auto ops = device.make_train_ops(Precision::kBFloat16);
    Outputs outputs = attention_cases::run_attention(*ops, {{4, 2, 16}, {7, 7, 7}, window});
    const Status status = device.sync();
    CHECK_MESSAGE(status.ok(), status.error().message());
    return outputs;
  };
  const Outputs ours = run(*without, 0);
  for (const auto& [forward, backward] : {std::pair{true, true}, {true, false}, {false, true}}) {
    calls = {.takes_forward = forward, .takes_backward = backward};
    compare("attention through an engine", Precision::kBFloat16, ours, run(*with, 0));
    CHECK((calls.forward > 0) == forward);
    CHECK((calls.backward > 0) == backward);
  }
  // What it does not take is ours.
  calls = {};
  run(*with, 3);
  CHECK(calls.forward + calls.backward == 0);
}

TEST_CASE(
    "an engine is used for the kinds and ways that it was faster at, and the name says which") {
  Folder folder;
  Calls calls;
  const auto runtime = simt::make_emulated_runtime();
  // Ours, then theirs, for each kind forward and backward: begin and end.
  ScriptedClock clock({0, 100, 200, 250, 0, 100, 200, 400, 0, 100, 200, 400, 0, 100, 200, 250});
  const auto measured = [&](const char* name, const Clock& by) {
    return gpu::make_measured_attention(std::make_unique<StandIn>(*runtime, calls, name), *runtime,
                                        folder.path, kShortAndLong, by);
  };
  const auto chosen = measured("stand-in-1", clock);
  CHECK(chosen->name() == "stand-in-1:10b01");
  CHECK(clock.done());
  CHECK(chosen->most_scratch() == 1000);
  const auto takes = [&](AttentionEngine& engine, int tokens, int head_dim) {
    const std::vector<int32_t> starts = {0, tokens};
    AttentionBackward op{};
    op.forward.shape = {2, 2, head_dim};
    op.forward.starts = starts;
    return std::pair{engine.supports(op.forward, Precision::kBFloat16),
                     engine.supports(op, Precision::kBFloat16)};
  };
  using Ways = std::pair<bool, bool>;
  CHECK(takes(*chosen, 8, 16) == Ways{true, false});
  CHECK(takes(*chosen, 9, 16) == Ways{false, true});
  CHECK(takes(*chosen, 65, 16) == Ways{false, false});
  CHECK(takes(*chosen, 8, 32) == Ways{false, false});
  const int runs = calls.forward + calls.backward;
  const ScriptedClock never({});
  const auto again = measured("stand-in-1", never);
  CHECK(again->name() == "stand-in-1:10b01");
  CHECK(takes(*again, 8, 16) == Ways{true, false});
  CHECK(calls.forward + calls.backward == runs);
  ScriptedClock other({0, 100, 200, 400, 0, 100, 200, 400, 0, 100, 200, 201, 0, 100, 200, 201});
  CHECK(measured("stand-in-2", other)->name() == "stand-in-2:01b01");
  CHECK(runtime->sync().ok());
}

TEST_CASE(
    "an engine that fails, or does not know a kind, is not chosen, and nothing else suffers") {
  Calls calls;
  calls.fails = true;
  const auto runtime = simt::make_emulated_runtime();
  const ScriptedClock clock({0, 100, 0, 100, 0, 100, 0, 100});
  const auto engine = gpu::make_measured_attention(std::make_unique<StandIn>(*runtime, calls),
                                                   *runtime, {}, kShortAndLong, clock);
  CHECK(engine->name() == "stand-in-1:00b00");
  CHECK(engine->most_scratch() == 0);
  CHECK(runtime->sync().ok());
}

TEST_CASE("without room on the card to measure in, our kernels are used, and it is tried again") {
  Folder folder;
  Calls calls;
  const std::vector<AttentionKind> kinds = {{16, 8, 8, 64, 2}};
  simt::Options small;
  small.memory = 16 << 10;
  const auto cramped = simt::make_emulated_runtime(small);
  const ScriptedClock never({});
  CHECK(gpu::make_measured_attention(std::make_unique<StandIn>(*cramped, calls), *cramped,
                                     folder.path, kinds, never)
            ->name() == "stand-in-1:0b0");
  CHECK(cramped->sync().ok());
  const auto roomy = simt::make_emulated_runtime();
  const ScriptedClock clock({0, 100, 200, 250, 0, 100, 200, 250});
  CHECK(gpu::make_measured_attention(std::make_unique<StandIn>(*roomy, calls), *roomy, folder.path,
                                     kinds, clock)
            ->name() == "stand-in-1:1b1");
}

}  // namespace fastserve::harness
