// Stale and asynchronous steps as arithmetic: who may do what, and what is applied how often.
#include <doctest/doctest.h>

#include "base/rng.h"
#include "fake_backend.h"
#include "train/loose_range.h"
#include "train/step_window.h"

using namespace fastserve;

namespace {

using namespace std::chrono_literals;

std::vector<double> ones(Subtree run) { return std::vector<double>(run.count, 1.0); }

/// One range, of its own, of a job of 7 microbatches a step.
struct OneRange {
  OneRange() {
    spec.steps = 20;
    spec.precision = Precision::kFloat32;
    spec.warmup_steps = 0;
    spec.consistency = {Consistency::Kind::kAsync, 0};
    range.emplace(backend, gate, replica, 0, spec, 7, true);
    range->take(LooseRange::version({4}), FakeBackend::initial_weights());
    range->open({4});
  }
  GradientHandle gradient(float value) {
    auto buffer = std::make_shared<GradientBuffer>(backend.allocate(4000).value());
    std::fill(buffer->data(), buffer->data() + 1000, value);
    return buffer;
  }
  std::vector<float> weights() { return {range->weights().begin(), range->weights().end()}; }

  TrainSpec spec;
  FakeBackend backend;
  WeightsGate gate;
  WeightReplica replica{backend, gate, ParameterShard::ranges(backend, 1)};
  std::optional<LooseRange> range;
};

}  // namespace

TEST_CASE("no trainer is more than S steps ahead of the slowest, whatever comes in what order") {
  for (uint64_t seed = 0; seed < 200; seed++) {
    CAPTURE(seed);
    Rng rng(seed);
    const uint64_t ahead = 1 + rng.below(4), end = 5 + rng.below(30);
    const size_t shards = 1 + rng.below(3);
    StepRanges ranges;
    StepWindow window(StepLayout(7), ahead, shards);
    window.begin({3}, {3 + end});
    std::map<uint32_t, std::optional<StepWindow::Given>> trainers;
    uint32_t names = 0;
    const auto join = [&] {
      ranges.join({names});
      window.join({names});
      trainers[names++];
    };
    for (size_t i = 0; i < 1 + rng.below(4); i++) join();
    std::map<uint64_t, uint32_t> counted;
    std::vector<StepWindow::Given> sent;  // gradients under way to the shards
    Nanoseconds now{0};
    uint64_t next = 3;
    for (int moves = 0; !window.over(); moves++) {
      REQUIRE(moves < 20'000);
      now += 1ms;
      for (const auto& given : window.hand_out(ranges, now)) {
        CHECK(given.step.value <= window.lowest().value + ahead);
        CHECK(given.step.value < 3 + end);
        CHECK_FALSE(trainers.at(given.trainer.value));
        trainers.at(given.trainer.value) = given;
      }
      auto trainer = trainers.begin();
      std::advance(trainer, static_cast<ptrdiff_t>(rng.below(trainers.size())));
      auto& [name, work] = *trainer;
      switch (rng.below(12)) {
        case 0:
          if (trainers.size() < 2 || rng.below(3) > 0) break;
          ranges.lose({name});
          window.lose({name});  // of what it sent some shards hear
          trainers.erase(trainer);
          break;
        case 1:
          if (rng.below(5) == 0) join();
          break;
        case 2:
          window.reopen_overdue(now, 20ms);
          break;
        case 3:
        case 4:
        case 5:
          if (!work) break;
          REQUIRE(window.complete({name}, work->step, work->run, ones(work->microbatches), ranges,
                                  now));
          sent.push_back(*work);
          work.reset();
          break;
        default:
          if (sent.empty()) break;
          const size_t pick = rng.below(sent.size());
          for (uint32_t shard = 0; shard < shards; shard++)
            window.arrived({shard}, sent[pick].step, sent[pick].microbatches.first);
          sent.erase(sent.begin() + static_cast<ptrdiff_t>(pick));
      }
      while (const auto whole = window.take_whole()) {
        CHECK(whole->step.value == next++);
        uint32_t first = 0;
        for (const auto& run : whole->runs) {
          CHECK(run.microbatches.first == first);
          first = run.microbatches.end();
        }
        CHECK(first == 7);
        CHECK(whole->losses == std::vector<double>(7, 1.0));
      }
    }
    CHECK(next == 3 + end);
  }
}

TEST_CASE("a segment that is to end early ends with the steps that have begun") {
  StepRanges ranges;
  StepWindow window(StepLayout(4), 2, 1);
  window.begin({0}, {100});
  for (const uint32_t i : {0u, 1u}) {
    ranges.join({i});
    window.join({i});
  }
  CHECK(window.hand_out(ranges, 0ns).size() == 2);
  window.end_early();
  for (const uint32_t i : {0u, 1u}) {
    CHECK(window.complete({i}, {0}, i, std::vector<double>(2, 1), ranges, 1ms));
    window.arrived({0}, {0}, 2 * i);
  }
  CHECK(window.hand_out(ranges, 1ms).empty());
  CHECK(window.take_whole());
  CHECK(window.over());
}

TEST_CASE("the run of a straggler goes to another, and counts once") {
  StepRanges ranges;
  StepWindow window(StepLayout(4), 1, 1);
  window.begin({0}, {2});
  for (const uint32_t i : {0u, 1u}) {
    ranges.join({i});
    window.join({i});
  }
  const std::vector<double> losses(2, 1);
  window.hand_out(ranges, 0ns);
  CHECK(window.complete({0}, {0}, 0, losses, ranges, 1ms));
  window.arrived({0}, {0}, 0);
  CHECK(window.hand_out(ranges, 1ms).front().step == StepId{1});
  CHECK(window.complete({0}, {1}, 0, losses, ranges, 2ms));
  CHECK(window.hand_out(ranges, 2ms).empty());  // it is as far ahead as it may be
  window.reopen_overdue(5s, 2s);
  const auto again = window.hand_out(ranges, 5s);
  REQUIRE(again.size() == 1);
  CHECK(again[0].trainer == TrainerId{0});
  CHECK(again[0].step == StepId{0});
  CHECK(window.complete({0}, {0}, 1, losses, ranges, 6s));
  CHECK(window.complete({1}, {0}, 1, losses, ranges, 7s));
  window.arrived({0}, {0}, 2);
  const auto whole = window.take_whole();
  REQUIRE(whole);
  CHECK(whole->repeated == 1);
  CHECK(whole->runs[1].by == TrainerId{0});
  CHECK_FALSE(window.complete({1}, {1}, 9, losses, ranges, 8s));
}

TEST_CASE("a run of a step is applied once, whoever sends it how often, and answered each time") {
  OneRange one;
  const auto start = one.weights();
  using Applied = LooseRange::Applied;
  CHECK(*one.range->apply("a", {4}, {0, 3}, one.gradient(1)) == Applied::kNew);
  const auto moved = one.weights();
  CHECK(moved != start);
  CHECK(*one.range->apply("b", {4}, {0, 3}, one.gradient(1)) == Applied::kRepeated);
  CHECK(*one.range->apply("a", {3}, {0, 3}, one.gradient(1)) == Applied::kLate);
  CHECK(*one.range->apply("b", {4}, {0, 3}, one.gradient(1)) == Applied::kRepeated);
  CHECK(one.weights() == moved);
  CHECK(*one.range->apply("a", {6}, {3, 4}, one.gradient(1)) == Applied::kNew);
  CHECK(one.range->version_for("a") == LooseRange::version({4}, 2));
  CHECK(one.range->version_for("b") == LooseRange::version({4}, 1));
  CHECK(one.range->version_for("late") == LooseRange::version({4}));
  for (const Subtree run : {Subtree{0, 0}, {6, 2}, {0, 8}})
    CHECK_FALSE(one.range->apply("a", {4}, run, one.gradient(1)).ok());
  CHECK_FALSE(one.range->apply("a", {20}, {0, 3}, one.gradient(1)).ok());
  REQUIRE(one.range->close({{4}, 3, {}}).ok());
  CHECK(one.replica.whole() == LooseRange::version({7}));
  CHECK(*one.range->apply("a", {6}, {0, 3}, one.gradient(1)) == Applied::kLate);
  CHECK_FALSE(one.range->close({{4}, 3, {}}).ok());
}

TEST_CASE("a node's gradient leaves scaled, once, and with nothing between the tiles") {
  OneRange one;
  one.range->begin({5}, 2);
  CHECK_FALSE(one.range->add({5}, {0, 1}, one.gradient(1)));
  CHECK_FALSE(one.range->add({4}, {1, 1}, one.gradient(1)));  // of another step
  const auto squares = one.range->add({5}, {1, 1}, one.gradient(2));
  REQUIRE(squares);
  CHECK(squares->front() == 9.0 * static_cast<double>(one.backend.tiles().front().size));
  std::vector<float> out(1000, 77);
  REQUIRE(one.range->take_gradient({5}, 0.5f, out));
  CHECK_FALSE(one.range->take_gradient({5}, 0.5f, out));
  std::vector<float> expected(1000, 0);
  for (const ParameterTile& tile : one.backend.tiles())
    std::fill_n(expected.begin() + static_cast<ptrdiff_t>(tile.offset), tile.size, 1.5f);
  CHECK(out == expected);
}
