#include "train/outer_optimiser.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/rng.h"

using namespace fastserve;

namespace {

constexpr size_t kElements = 300;

std::vector<float> displacement(uint64_t round, uint32_t node) {
  std::vector<float> values(kElements);
  Rng rng(round * 100 + node + 1);
  for (float& value : values) value = static_cast<float>(rng.normal() * 0.01);
  return values;
}

OuterOptimiser fresh(const OuterSettings& settings = {}) {
  std::vector<float> weights(kElements);
  Rng rng(9);
  for (float& weight : weights) weight = static_cast<float>(rng.normal());
  return {settings, weights};
}

void run_round(OuterOptimiser& outer, const std::vector<uint32_t>& order) {
  const uint64_t round = outer.round();
  for (const uint32_t node : order)
    CHECK(outer.add(round, node, displacement(round, node)).value() == OuterOptimiser::Added::kNew);
  CHECK(outer.arrived() == order.size());
  outer.step();
}

std::vector<float> weights_of(const OuterOptimiser& outer) {
  return {outer.weights().begin(), outer.weights().end()};
}

}  // namespace

TEST_CASE("the outer step is SGD with Nesterov's momentum on the mean displacement") {
  OuterOptimiser outer = fresh();
  std::vector<double> weights, momentum(kElements);
  for (const float weight : outer.weights()) weights.push_back(double(weight));
  for (uint64_t round = 0; round < 4; round++) {
    run_round(outer, {0, 1, 2});
    for (size_t i = 0; i < kElements; i++) {
      double mean = 0;
      for (uint32_t node = 0; node < 3; node++) mean += double(displacement(round, node)[i]) / 3;
      momentum[i] = 0.9 * momentum[i] + mean;
      weights[i] -= 0.7 * (mean + 0.9 * momentum[i]);
      CHECK(std::abs(double(outer.weights()[i]) - weights[i]) < 1e-6);
    }
  }
  CHECK(outer.round() == 4);
}

TEST_CASE("one node without momentum at rate 1 keeps what it has learnt") {
  OuterOptimiser outer = fresh({1, 1.0f, 0.0f});
  const std::vector<float> start = weights_of(outer);
  const std::vector<float> moved = displacement(0, 0);
  run_round(outer, {0});
  for (size_t i = 0; i < kElements; i++) CHECK(outer.weights()[i] == start[i] - moved[i]);
}

TEST_CASE("an average has the same bits in whatever order nodes arrive, with any of them lost") {
  for (std::vector<uint32_t> nodes : {std::vector<uint32_t>{0, 1, 2, 3}, {1, 4, 6}, {0, 2, 3, 9}}) {
    OuterOptimiser ordered = fresh();
    run_round(ordered, nodes);
    do {
      OuterOptimiser outer = fresh();
      run_round(outer, nodes);
      CHECK(weights_of(outer) == weights_of(ordered));
    } while (std::next_permutation(nodes.begin(), nodes.end()));
  }
}

TEST_CASE("a displacement that comes twice or late is dropped") {
  OuterOptimiser outer = fresh(), expected = fresh();
  run_round(expected, {0, 2});
  for (const uint32_t node : {2, 0, 2, 0})
    CHECK(outer.add(0, node, displacement(0, node)).value() ==
          (outer.has(node) ? OuterOptimiser::Added::kRepeated : OuterOptimiser::Added::kNew));
  outer.step();
  CHECK(weights_of(outer) == weights_of(expected));
  CHECK(outer.add(0, 1, displacement(0, 1)).value() == OuterOptimiser::Added::kLate);
  CHECK(outer.arrived() == 0);
}

TEST_CASE("a displacement that cannot be is refused and named") {
  OuterOptimiser outer = fresh();
  const auto message = [&](uint64_t round, std::vector<float> values) {
    return outer.add(round, 5, values).error().message();
  };
  CHECK(message(1, displacement(1, 5)).find("node 5, round 1: came before its round began") == 0);
  CHECK(message(0, std::vector<float>(7)).find("holds 7 values and not 300") != std::string::npos);
  std::vector<float> broken = displacement(0, 5);
  broken[33] = std::numeric_limits<float>::quiet_NaN();
  CHECK(message(0, broken).find("moved element 33 of the slice by nan") != std::string::npos);
  CHECK(outer.arrived() == 0);
  CHECK_FALSE(outer.has(5));
}

TEST_CASE("an outer optimiser that is restored goes on in the same bits") {
  OuterOptimiser whole = fresh();
  OuterOptimiser first = fresh();
  run_round(whole, {0, 1});
  run_round(first, {0, 1});
  auto second = OuterOptimiser::restore({}, first.state());
  REQUIRE(second.ok());
  run_round(whole, {0, 1});
  run_round(*second, {1, 0});
  CHECK(weights_of(*second) == weights_of(whole));
  CHECK(second->round() == 2);
  OuterState broken = first.state();
  broken.momentum.pop_back();
  CHECK_FALSE(OuterOptimiser::restore({}, broken).ok());
}

TEST_CASE("outer settings that cannot work are refused by name") {
  CHECK(OuterSettings{}.validate().ok());
  CHECK(OuterSettings{0}.validate().error().where == "local_steps");
  CHECK(OuterSettings{10, 0.0f}.validate().error().where == "outer learning_rate");
  CHECK(OuterSettings{10, std::nanf("")}.validate().error().where == "outer learning_rate");
  CHECK(OuterSettings{10, 0.7f, 1.0f}.validate().error().where == "outer momentum");
}
