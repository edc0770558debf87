// The promise the design stands on, over simulated clusters.
#include <doctest/doctest.h>

#include "simulated_cluster.h"
#include "train/schedule.h"

using namespace fastserve;

namespace {

uint64_t undisturbed() {
  SimulatedCluster cluster({.spec = made_up_spec()});
  CHECK(cluster.run().ok());
  return cluster.backend.weights_hash();
}

}  // namespace

TEST_CASE("a job ends in the same bits with any number of trainers and shards, in any order") {
  const uint64_t expected = undisturbed();
  for (const int trainers : {1, 2, 3, 7})
    for (const int shards : {1, 2, 5})
      for (const uint32_t unit : {1u, 2u, 4u, 8u}) {
        SimulatedCluster cluster({.spec = made_up_spec(),
                                  .trainers = trainers,
                                  .shards = shards,
                                  .unit = unit,
                                  .seed = unit * 100 + trainers * 10u + shards});
        REQUIRE(cluster.run().ok());
        CHECK(cluster.backend.weights_hash() == expected);
      }
}

TEST_CASE("a job ends in the same bits whichever trainers are killed when") {
  const uint64_t expected = undisturbed();
  for (uint64_t seed = 0; seed < 40; seed++) {
    SimulatedCluster cluster(
        {.spec = made_up_spec(), .trainers = 5, .shards = 3, .seed = seed, .kills = 4});
    REQUIRE(cluster.run().ok());
    CHECK(cluster.backend.weights_hash() == expected);
    CHECK(cluster.warnings == 4 - cluster.options.kills);
  }
}

TEST_CASE("a job interrupted and resumed at any step ends in the same bits") {
  const uint64_t expected = undisturbed();
  for (int64_t step = 0; step + 1 < made_up_spec().steps; step++) {
    SimulatedCluster first({.spec = made_up_spec(),
                            .trainers = 2,
                            .shards = 2,
                            .seed = uint64_t(step),
                            .interrupt_at = step,
                            .checkpoints = true});
    REQUIRE(first.run().value() == TrainEnd::kCancelled);
    REQUIRE(first.last_saved.has_value());
    SimulatedCluster second(
        {.spec = made_up_spec(), .trainers = 3, .shards = 1, .checkpoints = true},
        &*first.last_saved);
    REQUIRE(second.run().value() == TrainEnd::kAllSteps);
    CHECK(second.backend.weights_hash() == expected);
    CHECK(second.job->state().updates == made_up_spec().steps);
  }
}

TEST_CASE("the bits change when the settings that decide them change") {
  const uint64_t expected = undisturbed();
  TrainSpec spec = made_up_spec();
  spec.seed++;
  SimulatedCluster other_seed({.spec = spec});
  CHECK(other_seed.run().ok());
  CHECK(other_seed.backend.weights_hash() != expected);
  spec = made_up_spec();
  spec.microbatches = 6;
  SimulatedCluster other_cut({.spec = spec});
  CHECK(other_cut.run().ok());
  CHECK(other_cut.backend.weights_hash() != expected);
}

TEST_CASE("validation is judged when due, at the end, and its best is kept") {
  SimulatedCluster cluster({.spec = made_up_spec(), .trainers = 3});
  CHECK(cluster.run().ok());
  CHECK(cluster.validation.size() == 3);  // after 5, 10 and 12 steps
  const TrainOutcome outcome = cluster.job->outcome();
  CHECK(outcome.best_validation_loss ==
        *std::min_element(cluster.validation.begin(), cluster.validation.end()));
  CHECK(outcome.losses.size() == 12);
  CHECK(outcome.losses.back() < outcome.losses.front());
  CHECK(outcome.tokens == 12 * 42);
  CHECK(cluster.kept_best >= 1);
}

TEST_CASE("a job without hope stops early after its patience is out") {
  TrainSpec spec = made_up_spec();
  spec.steps = 1000;
  spec.evaluate_every = 1;
  spec.patience = 3;
  spec.learning_rate = spec.min_learning_rate = 0.5;  // far too high to settle
  SimulatedCluster cluster({.spec = spec, .trainers = 2});
  CHECK(cluster.run().value() == TrainEnd::kEarlyStop);
  CHECK(cluster.job->state().early.worse == 3);
  CHECK(cluster.job->state().early.best_step == cluster.job->state().steps_done - 3);
}

TEST_CASE("a loss that is not finite stops the job and says at which step and what to do") {
  TrainSpec spec = made_up_spec();
  SimulatedCluster cluster({.spec = spec});
  cluster.backend.masters()[17] = std::numeric_limits<float>::quiet_NaN();
  cluster.backend.refresh_all();
  const auto end = cluster.run();
  REQUIRE_FALSE(end.ok());
  CHECK(end.error().message().find("not finite at step 0") != std::string::npos);
  CHECK(end.error().hint.find("lower the learning rate") != std::string::npos);
}

TEST_CASE(
    "a validation loss that is not finite stops the job, so that no such model is published") {
  TrainSpec spec = made_up_spec();
  spec.microbatches = spec.batch = spec.steps = 1;
  SimulatedCluster cluster({.spec = spec});
  TrainingJob::Setup setup;
  setup.spec = spec;
  setup.plan = cluster.plan;
  setup.clock = &cluster.clock;
  setup.evaluation_chunks = 1;
  setup.evaluation_counted = 10;
  TrainingJob job(setup, {});
  const std::vector<double> loss{1.0}, broken{std::numeric_limits<double>::quiet_NaN()};
  WorkItem item = std::get<GiveWork>(job.trainer_joined({0}).front()).item;
  job.work_done({0}, item.round, 0, loss);
  job.shard_gathered({0}, {0}, {1.0});
  const Actions evaluation = job.shard_ready({0}, {0});
  item = std::get<GiveWork>(evaluation.back()).item;
  REQUIRE(item.kind == WorkItem::Kind::kEvaluation);
  const Actions out = job.work_done({0}, item.round, 0, broken);
  REQUIRE(out.size() == 1);
  CHECK(std::get<Finish>(out[0]).end.error().what == "the validation loss is not finite at step 1");
}

TEST_CASE("half precision skips a step that overflows and halves the loss scale") {
  TrainSpec spec = made_up_spec();
  spec.precision = Precision::kFloat16;
  SimulatedCluster cluster({.spec = spec, .shards = 2});
  cluster.job.reset();
  TrainingJob::Setup setup;
  setup.spec = spec;
  setup.plan = cluster.plan;
  setup.clock = &cluster.clock;
  TrainingJob job(setup, {});
  const double inf = std::numeric_limits<double>::infinity();
  Actions out = job.trainer_joined({0});
  const auto& item = std::get<GiveWork>(out.front()).item;
  CHECK(item.scale == 65536.0f / 42);
  for (uint32_t unit = 0; unit < 7; unit++) {
    const std::vector<double> loss{1.0};
    job.work_done({0}, item.round, unit, loss);
  }
  out = job.shard_gathered({0}, {0}, {1.0, inf});
  REQUIRE(out.size() == 2);
  CHECK_FALSE(std::get<Commit>(out[0]).applied);
  CHECK(std::get<SkipStep>(out[1]).step == StepId{0});
  CHECK(job.state().scaler.scale == 32768);
  out = job.shard_ready({0}, {0});
  CHECK(job.state().steps_done == 1);
  CHECK(job.state().updates == 0);
}

TEST_CASE("the loss scale doubles after 2000 good steps and never falls below one") {
  LossScaler scaler;
  for (int i = 0; i < 1999; i++) scaler.good();
  CHECK(scaler.scale == 65536);
  scaler.good();
  CHECK(scaler.scale == 131072);
  for (int i = 0; i < 17; i++) CHECK(scaler.overflow());
  CHECK(scaler.scale == 1);
  CHECK_FALSE(scaler.overflow());
}

TEST_CASE("the learning rate warms up, then falls along a cosine to its end") {
  TrainSpec spec;
  spec.steps = 2000;
  CHECK(learning_rate_at(spec, 0) == doctest::Approx(1e-3 / 101));
  CHECK(learning_rate_at(spec, 100) == doctest::Approx(1e-3));
  CHECK(learning_rate_at(spec, 1050) == doctest::Approx(5.5e-4));
  CHECK(learning_rate_at(spec, 2000) == doctest::Approx(1e-4));
}

TEST_CASE("the gradient is clipped to the global norm over all shards") {
  TrainSpec spec = made_up_spec();
  spec.microbatches = spec.batch = 1;
  SimulatedCluster cluster({.spec = spec, .shards = 2});
  TrainingJob::Setup setup;
  setup.spec = spec;
  setup.plan = cluster.plan;
  setup.shards = 2;
  setup.clock = &cluster.clock;
  TrainingJob job(setup, {});
  const WorkItem item = std::get<GiveWork>(job.trainer_joined({0}).front()).item;
  const std::vector<double> loss{3.0};
  job.work_done({0}, item.round, 0, loss);
  CHECK(job.shard_gathered({1}, {0}, {9.0}).empty());
  const Actions out = job.shard_gathered({0}, {0}, {10.0, 6.0});
  const ApplyOrder order = std::get<ApplyStep>(out.at(1)).order;
  CHECK(order.grad_scale == doctest::Approx(1 / 5.000001));
  CHECK(order.update == 1);
}
