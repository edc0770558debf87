// Whose turn it is in a device's memory, without any model.
#include "serve/model_turns.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "base/rng.h"

using namespace fastserve;
using namespace std::chrono_literals;
using Models = std::vector<size_t>;

namespace {

constexpr Nanoseconds kTurn = 1s;

struct Stage {
  ModelTurns turns;
  std::vector<ModelTurns::Use> uses;
  uint64_t available = 1000;
  Nanoseconds now{0};

  /// Each model takes so many bytes, and one more while it is loaded.
  Stage(const std::vector<uint64_t>& held, uint64_t budget)
      : turns(needs(held), budget, kTurn), uses(held.size()) {}
  static std::vector<ModelTurns::Need> needs(const std::vector<uint64_t>& held) {
    std::vector<ModelTurns::Need> needs;
    for (const uint64_t bytes : held) needs.push_back({bytes, 1});
    return needs;
  }
  ModelTurns::Plan plan(Nanoseconds later = 1ms) {
    now += later;
    return turns.plan(
        uses, [this] { return available; }, now);
  }
  /// A request that is asked for and answered at once, by a model that is there.
  void use(size_t model) {
    uses[model].answering = true;
    REQUIRE_FALSE(plan().come.has_value());
    uses[model].answering = false;
  }
};

}  // namespace

TEST_CASE("models are there from the start in their order, as far as they fit together") {
  CHECK(Stage({4, 4, 2}, 11).turns.begin() == Models{0, 1, 2});
  CHECK(Stage({4, 4, 2}, 10).turns.begin() == Models{0, 1});
  CHECK(Stage({4, 8, 2}, 9).turns.begin() == Models{0, 2});
}

TEST_CASE("a model that is asked takes the place of the one idle for longest") {
  Stage stage({4, 4, 4, 4}, 13);
  CHECK(stage.turns.begin() == Models{0, 1, 2});
  for (const size_t model : {1u, 0u, 2u}) stage.use(model);
  stage.uses[3].asked = true;
  const ModelTurns::Plan plan = stage.plan();
  CHECK(plan.leave == Models{1});
  CHECK(plan.come == size_t{3});
  stage.uses[3] = {};
  stage.uses[1].asked = true;
  CHECK(stage.plan().leave == Models{0});
  // Others need not hurry while there is one.
  stage.uses = {{}, {}, {.answering = true, .asked = true}, {.asked = true}};
  stage.uses[0].asked = true;
  const ModelTurns::Plan beside = stage.plan(9s);
  CHECK(beside.leave == Models{1});
  CHECK(beside.come == size_t{0});
}

TEST_CASE("as many leave as the model needs that comes, and none where it fits beside them") {
  Stage stage({4, 4, 9, 1}, 10);
  CHECK(stage.turns.begin() == Models{0, 1, 3});
  stage.plan();
  stage.use(1);
  stage.uses[2].asked = true;
  CHECK(stage.plan().leave == Models{0, 3, 1});
  Stage roomy({4, 6, 2}, 10);
  CHECK(roomy.turns.begin() == Models{0, 2});
  roomy.uses[1].asked = true;
  CHECK(roomy.plan().leave == Models{0});
  roomy.uses = std::vector<ModelTurns::Use>(3);
  roomy.uses[0].asked = true;
  CHECK(roomy.plan().leave == Models{2, 1});
}

TEST_CASE("a model that answers does not leave; after its turn it takes nothing new") {
  Stage stage({4, 4}, 5);
  CHECK(stage.turns.begin() == Models{0});
  stage.uses[0] = {.answering = true, .asked = true};
  CHECK_FALSE(stage.plan().come);
  stage.uses[1].asked = true;
  ModelTurns::Plan plan = stage.plan(kTurn);
  CHECK_FALSE(plan.come);
  CHECK_FALSE(plan.closed[0]);  // its turn is just over
  plan = stage.plan();
  CHECK_FALSE(plan.come);
  CHECK(plan.closed[0]);
  CHECK(plan.leave.empty());
  stage.uses[0].answering = false;  // others of its requests wait
  plan = stage.plan();
  CHECK(plan.leave == Models{0});
  CHECK(plan.come == size_t{1});
  CHECK_FALSE(plan.closed[0]);
  // Now that one is asked, has its turn, and makes room for those that waited.
  stage.uses[1] = {.answering = true, .asked = true};
  CHECK_FALSE(stage.plan(5s).closed[1]);  // its turn begins when it is there
  CHECK_FALSE(stage.plan(kTurn).closed[1]);
  CHECK(stage.plan().closed[1]);
  stage.uses[1] = {};
  CHECK(stage.plan().come == size_t{0});
}

TEST_CASE("models come in the order in which they began to wait, and a small one waits as well") {
  Stage stage({8, 8, 1, 8}, 10);
  CHECK(stage.turns.begin() == Models{0, 2});
  stage.uses[0].answering = true;
  stage.uses[3].asked = true;
  CHECK_FALSE(stage.plan().come);
  stage.uses[1].asked = true;
  CHECK_FALSE(stage.plan().come);
  stage.uses[0].answering = false;
  CHECK(stage.plan().come == size_t{3});
  stage.uses[3] = {};
  CHECK(stage.plan().come == size_t{1});

  Stage small({8, 8, 1}, 9);
  CHECK(small.turns.begin() == Models{0});
  small.uses[0].answering = true;
  small.uses[1].asked = true;
  CHECK_FALSE(small.plan().come);
  small.uses[2].asked = true;
  CHECK_FALSE(small.plan(9s).come);
  small.uses[0].answering = false;
  CHECK(small.plan().come == size_t{1});
}

TEST_CASE("who no longer waits has lost its place, and who could not come may try again") {
  Stage stage({4, 4, 4}, 5);
  CHECK(stage.turns.begin() == Models{0});
  stage.uses[0].answering = true;
  stage.uses[1].asked = true;
  CHECK_FALSE(stage.plan().come);
  stage.uses[1].asked = false;  // cancelled
  stage.uses[2].asked = true;
  CHECK_FALSE(stage.plan().come);
  stage.uses[1].asked = true;
  stage.uses[0].answering = false;
  CHECK(stage.plan().come == size_t{2});
  stage.turns.gone(2);
  CHECK(stage.plan().come == size_t{1});
  stage.uses[1] = {};
  CHECK(stage.plan().come == size_t{2});
}

TEST_CASE("where the device has less than it should, more idle models leave") {
  Stage stage({3, 3, 4}, 10);
  CHECK(stage.turns.begin() == Models{0, 1});
  stage.uses[2].asked = true;
  stage.available = 1;  // beside what leaves, which is 3
  CHECK(stage.plan().leave == Models{0, 1});
}

TEST_CASE("whatever is asked when, nobody leaves who answers, all fit, and everybody has a turn") {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    Rng rng(seed);
    const size_t models = 2 + rng.below(5);
    std::vector<uint64_t> held;
    for (size_t i = 0; i < models; ++i) held.push_back(1 + rng.below(9));
    const uint64_t budget = 1 + *std::max_element(held.begin(), held.end()) + rng.below(8);
    Stage stage(held, budget);
    std::vector<char> here(models);
    for (const size_t i : stage.turns.begin()) here[i] = true;
    std::vector<int> queued(models), running(models), patience(models);
    int longest = 0;
    for (int step = 0; step < 3000; ++step) {
      for (size_t i = 0; i < models; ++i) {
        // Some are asked all the time, so that they never become idle by themselves.
        if (i % 2 == 0 ? queued[i] < 3 : rng.below(20) == 0) ++queued[i];
        stage.uses[i] = {running[i] > 0, queued[i] > 0};
      }
      const ModelTurns::Plan plan = stage.plan(20ms);
      for (const size_t i : plan.leave) {
        REQUIRE(here[i]);
        REQUIRE(running[i] == 0);
        here[i] = false;
      }
      if (plan.come) {
        REQUIRE_FALSE(here[*plan.come]);
        here[*plan.come] = true;
      }
      uint64_t sum = plan.come ? 1 : 0;
      for (size_t i = 0; i < models; ++i) {
        if (here[i]) sum += held[i];
        if (here[i] && !plan.closed[i] && queued[i] > 0) {
          running[i] = std::max(running[i], 1 + static_cast<int>(rng.below(20)));
          queued[i] = patience[i] = 0;
        }
        if (running[i] > 0) --running[i];
        if (queued[i] > 0) longest = std::max(longest, ++patience[i]);
      }
      REQUIRE(sum <= budget);
    }
    // Before each other model's turn of 50 steps comes the end of the last answers before it.
    CHECK(longest <= static_cast<int>(models) * 75);
  }
}
