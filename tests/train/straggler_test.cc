// How long a job waits for a trainer that does not come to an end.
#include <doctest/doctest.h>

#include "simulated_cluster.h"

using namespace fastserve;
using namespace std::chrono_literals;

namespace {

/// Two trainers, one microbatch of a step each.
struct TwoTrainers {
  explicit TwoTrainers(int64_t steps, bool runs = false) {
    TrainingJob::Setup setup;
    setup.spec.steps = steps;
    setup.plan.microbatches = setup.plan.cards = 2;
    setup.runs = runs;
    setup.plan.unit = 1;
    setup.plan.tokens_per_step = 2;
    setup.clock = &clock;
    job.emplace(std::move(setup), JobState());
    take(job->trainers_joined(std::vector<TrainerId>{{0}, {1}}));
  }

  void take(const Actions& actions) {
    for (const Action& action : actions)
      if (const auto* work = std::get_if<GiveWork>(&action)) given[work->trainer] = work->item;
  }
  void done(TrainerId by) {
    const WorkItem item = given.at(by);
    given.erase(by);
    take(job->work_done(by, item.round, item.unit, std::vector<double>{1.0}));
  }
  void close() {
    const StepId step{static_cast<uint64_t>(job->state().steps_done)};
    job->shard_gathered({0}, step, {1.0});
    take(job->shard_ready({0}, step));
  }

  ManualClock clock;
  std::optional<TrainingJob> job;
  std::map<TrainerId, WorkItem> given;
};

}  // namespace

TEST_CASE("a trainer that never comes to an end is not waited for longer with each step") {
  TwoTrainers two(60);
  for (int step = 0; step < 60; step++) {
    CAPTURE(step);
    const Nanoseconds begun = two.clock.now();
    two.clock.advance(1s);
    two.done({0});
    while (!two.given.contains(TrainerId{0})) {
      two.clock.advance(500ms);
      two.take(two.job->tick());
      REQUIRE(two.clock.now() - begun < 12s);
    }
    two.clock.advance(1s);
    two.done({0});
    two.given.erase(TrainerId{1});  // it is at work for ever
    two.close();
  }
}

TEST_CASE("a job that has become slower does not give every trainer's work to the others") {
  TwoTrainers two(40);
  for (int step = 0; step < 40; step++) {
    CAPTURE(step);
    const Nanoseconds each = step < 20 ? 1s : 10s;
    two.clock.advance(each);
    two.done({0});
    two.clock.advance(each / 4);
    two.take(two.job->tick());
    if (step < 20 || step > 25) CHECK_FALSE(two.given.contains(TrainerId{0}));
    two.given.erase(TrainerId{0});
    two.done({1});
    two.close();
  }
}

TEST_CASE("a trainer whose loss is heard of before it came gets no work") {
  TwoTrainers two(3);
  two.job->trainer_lost({2}, {ErrorCode::kUnavailable, "has stopped", "", ""});
  two.take(two.job->trainer_joined({2}));
  two.job->trainer_lost({1}, {ErrorCode::kUnavailable, "has stopped", "", ""});
  two.done({0});
  CHECK_FALSE(two.given.contains(TrainerId{2}));
}

TEST_CASE(
    "a card's run waits for its own trainer however long, and is another's once that is lost") {
  TwoTrainers two(5, /*runs=*/true);
  for (int step = 0; step < 4; step++) {
    CHECK(two.given.at({0}).subtree == Subtree{0, 1});
    CHECK(two.given.at({1}).subtree == Subtree{1, 1});
    two.clock.advance(1s);
    two.done({0});
    two.clock.advance(1h);
    two.take(two.job->tick());
    CHECK_FALSE(two.given.contains(TrainerId{0}));
    two.done({1});
    two.close();
  }
  two.done({0});
  two.take(two.job->trainer_lost({1}, {ErrorCode::kUnavailable, "has stopped", "", ""}));
  CHECK(two.given.at({0}).subtree == Subtree{1, 1});
}
