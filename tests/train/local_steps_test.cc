// Local steps as arithmetic: who counts, what a node does on its own, and how a round ends.
#include <doctest/doctest.h>

#include <cmath>

#include "fake_backend.h"
#include "train/local_range.h"
#include "train/local_rounds.h"

using namespace fastserve;

namespace {

TrainSpec local_spec(int local_steps = 3) {
  TrainSpec spec;
  spec.model.vocab_size = 50;
  spec.block = 6;
  spec.batch = spec.microbatches = 7;
  spec.steps = 20;
  spec.precision = Precision::kFloat32;
  spec.warmup_steps = 0;
  spec.consistency = {Consistency::Kind::kLocal, local_steps};
  return spec;
}

GradientHandle floats(FakeBackend& backend, float value, size_t n = FakeBackend::kElements) {
  auto buffer = std::make_shared<GradientBuffer>(backend.allocate(n * 4).value());
  std::fill(buffer->data(), buffer->data() + n, value);
  return buffer;
}

/// A node with one range, its own.
struct OneRange {
  explicit OneRange(const TrainSpec& spec = local_spec()) {
    local.emplace(backend, gate, replica, 0, spec, true);
    local->take({0}, FakeBackend::initial_weights());
    local->open({0});
  }
  bool step(uint64_t at) {
    if (!local->add({at}, {0, 1}, floats(backend, 0.5f))) return false;
    ApplyOrder order;
    order.step = {at};
    order.learning_rate = 0.1;
    return local->apply(order);
  }
  /// What passes read.
  bool packed_are(const std::vector<float>& expected) {
    for (const ParameterTile& tile : backend.tiles())
      for (size_t i = tile.offset; i < tile.offset + tile.size; i++)
        if (backend.packed()[i] != expected[i]) return false;
    return true;
  }
  std::vector<float> weights() { return {backend.masters().begin(), backend.masters().end()}; }

  FakeBackend backend;
  WeightsGate gate;
  WeightReplica replica{backend, gate, ParameterShard::ranges(backend, 1)};
  std::optional<LocalRange> local;
};

template <class Kind>
const Kind* only(const LocalRounds::Orders& orders) {
  return orders.size() == 1 ? std::get_if<Kind>(&orders.front()) : nullptr;
}

}  // namespace

TEST_CASE("a user names a consistency, and reads the same name again") {
  for (const char* text : {"exact", "stale:1", "stale:7", "async", "local:16"})
    CHECK(Consistency::parse(text)->text() == text);
  for (const char* text : {"", "local", "local:", "local:0", "local:x", "local:5x", "stale:0",
                           "exact:1", "async:2", "local:99999999999", "stale:-1"}) {
    CAPTURE(text);
    const auto refused = Consistency::parse(text);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().where == "consistency");
    CHECK(refused.error().hint != "");
  }
}

TEST_CASE("a displacement counts by its share, once, and only if the coordinator says so") {
  FakeBackend backend;
  const std::vector<float> start(4, 1.0f);
  OuterShard shard({3, 1.0f, 0.0f}, start, {}, {6});
  CHECK(*shard.add({6}, 11, floats(backend, 1, 4)) == OuterShard::Arrival::kNew);
  CHECK(*shard.add({6}, 11, floats(backend, 9, 4)) == OuterShard::Arrival::kRepeated);
  CHECK(*shard.add({6}, 12, floats(backend, 4, 4)) == OuterShard::Arrival::kNew);
  CHECK(*shard.add({6}, 13, floats(backend, 100, 4)) == OuterShard::Arrival::kNew);
  CHECK(*shard.add({3}, 14, floats(backend, 1, 4)) == OuterShard::Arrival::kLate);
  CHECK(shard.add({9}, 15, floats(backend, 1, 4)).error().code == ErrorCode::kInvalidArgument);
  CHECK(shard.add({6}, 16, floats(backend, 1, 3)).error().code == ErrorCode::kInvalidArgument);
  REQUIRE(shard.close({{6}, 3, {{11, 2}, {12, 1}}}).ok());
  for (const float weight : shard.weights()) CHECK(weight == 1 - (2 * 1 + 1 * 4) / 3.0f);
  CHECK(shard.step() == StepId{9});
  CHECK(*shard.add({6}, 13, floats(backend, 1, 4)) == OuterShard::Arrival::kLate);
}

TEST_CASE("a round is not closed with a displacement that is not here, nor twice with one") {
  FakeBackend backend;
  const std::vector<float> start(4, 1.0f);
  OuterShard shard({3, 1.0f, 0.0f}, start, {}, {6});
  REQUIRE(shard.add({6}, 1, floats(backend, 1, 4)).ok());
  CHECK(shard.close({{6}, 3, {{2, 1}}}).error().code == ErrorCode::kCorrupt);
  CHECK(shard.close({{9}, 3, {{1, 1}}}).error().code == ErrorCode::kCorrupt);
  CHECK(shard.close({{6}, 3, {{1, 1}, {1, 1}}}).error().code == ErrorCode::kCorrupt);
}

TEST_CASE("after a unit a node's weights are those that it began with, and what moved is sent") {
  OneRange node;
  const auto start = node.weights();
  node.local->begin({0}, 1);
  REQUIRE(node.step(0));
  REQUIRE(node.step(1));
  const auto local = node.weights();
  std::vector<float> moved(FakeBackend::kElements);
  REQUIRE(node.local->displace({0}, moved));
  CHECK(node.weights() == start);
  for (size_t i = 0; i < moved.size(); i++) CHECK(moved[i] == start[i] - local[i]);
  CHECK_FALSE(node.local->displace({0}, moved));
  // A second unit of the round begins where the first one did.
  node.local->begin({0}, 1);
  CHECK(node.packed_are(start));
}

TEST_CASE("new weights end the unit at work, and what still comes of it changes nothing") {
  OneRange node;
  node.local->begin({0}, 1);
  REQUIRE(node.step(0));
  std::vector<float> news(FakeBackend::kElements, 0.25f);
  node.local->take({3}, news);
  CHECK(node.weights() == news);
  CHECK_FALSE(node.step(1));
  std::vector<float> moved(FakeBackend::kElements);
  CHECK_FALSE(node.local->displace({0}, moved));
  CHECK(node.weights() == news);
  node.local->take({0}, FakeBackend::initial_weights());  // of long ago
  CHECK(node.weights() == news);
}

TEST_CASE("the owner of a range has the new weights when it has closed the round") {
  OneRange node;
  const auto start = node.weights();
  node.local->begin({0}, 1);
  REQUIRE(node.local->outer().add({0}, 5, floats(node.backend, 0.5f)).ok());
  REQUIRE(node.local->close({{0}, 3, {{5, 7}}}).ok());
  CHECK(node.replica.whole() == StepId{3});
  CHECK(node.packed_are(node.weights()));
  CHECK(node.weights()[0] != start[0]);
  const auto saved = node.local->snapshot();
  CHECK(saved->weights == node.weights());
  CHECK(saved->m[0] == 0.5f);  // the outer momentum
}

TEST_CASE("a node goes through a unit's steps, and answers once with all their losses") {
  NodeWork work(1);
  LocalRounds rounds(local_spec(), work, {{0, 1, 0, 10}, {1, 1, 10, 20}});
  WorkItem unit;
  unit.round = 4;
  unit.unit = 1;
  unit.step = {6};
  unit.subtree = {3, 2};
  unit.steps = 2;
  unit.attempt = 9;
  unit.scale = 0.5;
  CHECK(rounds.give(unit).empty());  // until its weights are in place
  const auto begun = rounds.weights_ready({6});
  REQUIRE(only<LocalRounds::Begin>(begun));
  CHECK(only<LocalRounds::Begin>(begun)->microbatches == 2);
  for (const uint64_t step : {6, 7}) {
    const auto pieces = work.hand_out({});
    REQUIRE(pieces.size() == 1);
    CHECK(pieces[0].item.step == StepId{step});
    CHECK(pieces[0].item.weights == StepId{6});
    CHECK(pieces[0].item.subtree == Subtree{3, 2});
    const std::vector<double> losses = {double(step), 1};
    const auto done = work.done(0, pieces[0].item.round, pieces[0].item.unit, std::span(losses));
    REQUIRE(done);
    CHECK(rounds.computed(*done).empty());
    CHECK(rounds.gathered(0, {step}, {9}).empty());
    CHECK(rounds.gathered(0, {step - 1}, {9}).empty());  // late
    const auto apply = rounds.gathered(1, {step}, {16});
    REQUIRE(only<LocalRounds::Apply>(apply));
    CHECK(only<LocalRounds::Apply>(apply)->order.grad_scale == doctest::Approx(1 / 5.0));
    CHECK(rounds.applied(0, {step}).empty());
    const auto next = rounds.applied(1, {step});
    CHECK(next.size() == (step == 7 ? 1 : 0));
    if (step == 7) {
      REQUIRE(only<LocalRounds::Displace>(next));
      CHECK(only<LocalRounds::Displace>(next)->attempt == 9);
      CHECK(only<LocalRounds::Displace>(next)->share == 2);
    }
  }
  CHECK(rounds.displaced(1, {6}).empty());
  const auto end = rounds.displaced(0, {6});
  REQUIRE(only<LocalRounds::Done>(end));
  const auto& answer = only<LocalRounds::Done>(end)->unit;
  CHECK(answer.round == 4);
  CHECK(answer.unit == 1);
  CHECK(answer.losses == std::vector<double>{6, 1, 7, 1});
  CHECK(rounds.give(unit).empty());  // told twice
  CHECK(work.hand_out({}).empty());
}

TEST_CASE("newer weights end a node's unit, and it goes on with the next one") {
  NodeWork work(1);
  LocalRounds rounds(local_spec(), work, {{0, 1, 0, 10}});
  WorkItem unit;
  unit.subtree = {0, 1};
  unit.steps = 3;
  unit.attempt = 1;
  rounds.weights_ready({0});
  CHECK(only<LocalRounds::Begin>(rounds.give(unit)));
  const auto pieces = work.hand_out({});
  REQUIRE(pieces.size() == 1);
  unit.step = {3};
  unit.attempt = 2;
  CHECK(rounds.give(unit).empty());
  const auto begun = rounds.weights_ready({3});
  REQUIRE(only<LocalRounds::Begin>(begun));
  CHECK(only<LocalRounds::Begin>(begun)->round == StepId{3});
  CHECK(rounds.gathered(0, {0}, {1}).empty());
  const std::vector<double> losses = {1};
  CHECK_FALSE(work.done(0, pieces[0].item.round, pieces[0].item.unit, std::span(losses)));
}

TEST_CASE("a gradient that is not finite ends the job, or in half precision the step") {
  for (const Precision precision : {Precision::kFloat32, Precision::kFloat16}) {
    NodeWork work(1);
    TrainSpec spec = local_spec();
    spec.precision = precision;
    LocalRounds rounds(spec, work, {{0, 1, 0, 10}});
    WorkItem unit;
    unit.subtree = {0, 1};
    unit.steps = 3;
    unit.attempt = 1;
    rounds.weights_ready({0});
    rounds.give(unit);
    const auto pieces = work.hand_out({});
    const std::vector<double> losses = {1};
    rounds.computed(*work.done(0, pieces[0].item.round, 0, std::span(losses)));
    const auto orders = rounds.gathered(0, {0}, {std::nan("")});
    if (precision == Precision::kFloat16) {
      CHECK(only<LocalRounds::Skip>(orders));
    } else {
      REQUIRE(only<LocalRounds::Done>(orders));
      CHECK(only<LocalRounds::Done>(orders)->unit.losses.size() == 3);
      CHECK(std::isnan(only<LocalRounds::Done>(orders)->unit.losses.back()));
    }
  }
}

TEST_CASE("runs are as long as trainers are fast, wherever the tree is cut") {
  StepRanges ranges;
  std::vector<TrainerId> owners;
  const StepLayout layout(10);
  for (const uint32_t i : {0u, 1u, 2u}) ranges.join({i});
  auto runs = ranges.runs(layout, std::chrono::seconds(0), owners);
  CHECK(runs == std::vector<Subtree>{{0, 3}, {3, 4}, {7, 3}});
  ranges.completed({0}, 6, std::chrono::seconds(1));
  ranges.completed({1}, 3, std::chrono::seconds(1));
  ranges.completed({2}, 1, std::chrono::seconds(1));
  runs = ranges.runs(layout, std::chrono::seconds(1), owners);
  CHECK(runs == std::vector<Subtree>{{0, 6}, {6, 3}, {9, 1}});
  ranges.lose({1});
  ranges.lose({2});
  CHECK(ranges.runs(layout, std::chrono::seconds(2), owners) == std::vector<Subtree>{{0, 10}});
}
