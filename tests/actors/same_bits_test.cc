// The promise of the README, over real transformers: whoever computes, and whatever is killed when.
#include <doctest/doctest.h>

#include <cmath>
#include <condition_variable>
#include <mutex>
#include <set>

#include "jobs.h"
#include "train/checkpoint.h"
#include "train/plan.h"

using namespace fastserve;

namespace {

constexpr std::pair<int, int> kPlacements[] = {{1, 1}, {1, 2}, {2, 1}, {2, 2},
                                               {3, 1}, {3, 2}, {7, 1}, {7, 2}};

/// Runs the job and destroys the system once `step` steps are done, as a crash would: whatever was
/// not in a checkpoint by then is gone.
void run_and_kill(TrainingSystem::Config config, int64_t step) {
  std::mutex mutex;
  std::condition_variable changed;
  bool reached = step == 0, killed = false;
  config.progress = [&](const TrainProgress& progress) {
    if (progress.step < step) return;
    std::unique_lock lock(mutex);
    reached = true;
    changed.notify_all();
    changed.wait(lock, [&] { return killed; });
  };
  auto system = TrainingSystem::start(std::move(config));
  REQUIRE(system.ok());
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return reached; });
    killed = true;
    changed.notify_all();
  }
  *system = nullptr;
}

}  // namespace

TEST_CASE("a real model ends in the same bits with 1, 2, 3 or 7 trainers on 1 or 2 lanes each") {
  std::set<uint64_t> seen;
  for (const Precision precision :
       {Precision::kFloat32, Precision::kBFloat16, Precision::kFloat16}) {
    const uint64_t expected = hash_of(run(real_job(1, 1, precision)).weights);
    seen.insert(expected);
    for (const auto& [trainers, lanes] : kPlacements) {
      CAPTURE(trainers);
      CAPTURE(lanes);
      CHECK(hash_of(run(real_job(trainers, lanes, precision)).weights) == expected);
    }
  }
  CHECK(seen.size() == 3);  // each precision has bits of its own: something was computed
}

TEST_CASE("a job whose memory is short computes layers again, says so, and ends in the same bits") {
  TrainingSystem::Config config = real_job(2, 1, Precision::kBFloat16);
  config.spec.batch = 32;
  config.spec.microbatches = 2;
  const TrainPlan plan = plan_training(config.spec, config.placement, 2);
  const auto need = [&](Recompute recompute) {
    return estimate_memory(config.spec, plan, false, recompute).total();
  };
  REQUIRE(need(Recompute::kLayer) < need(Recompute::kNone));
  const uint64_t expected = hash_of(run(config).weights);
  const auto on_less = [&](uint64_t bytes) {
    config.memory_limit = bytes;
    return TrainingSystem::start(config);
  };
  const auto system = on_less(need(Recompute::kNone) - 1);
  REQUIRE(system.ok());
  CHECK((*system)->description().find("layers recomputed") != std::string::npos);
  const auto outcome = (*system)->wait();
  REQUIRE(outcome.ok());
  CHECK(hash_of(outcome->weights) == expected);
  CHECK_FALSE(on_less(need(Recompute::kLayer) - 1).ok());
  config.placement.recompute = Recompute::kNone;
  CHECK_FALSE(on_less(need(Recompute::kNone) - 1).ok());
}

TEST_CASE("a real model killed after any step and resumed elsewhere ends in the same bits") {
  const TrainOutcome expected = run(real_job(1, 1, Precision::kBFloat16));
  for (size_t i = 0; i < std::size(kPlacements); i++) {
    const auto [trainers, lanes] = kPlacements[i];
    const auto [other_trainers, other_lanes] = kPlacements[(i + 3) % std::size(kPlacements)];
    for (int64_t step = 0; step < 6; step++) {
      CAPTURE(trainers);
      CAPTURE(lanes);
      CAPTURE(step);
      Folder folder;
      TrainingSystem::Config config = real_job(trainers, lanes, Precision::kBFloat16);
      config.checkpoint_directory = folder.path;
      run_and_kill(std::move(config), step);
      config = real_job(other_trainers, other_lanes, Precision::kBFloat16);
      config.checkpoint_directory = folder.path;
      const TrainOutcome outcome = run(std::move(config));
      CHECK(hash_of(outcome.weights) == hash_of(expected.weights));
      CHECK(hash_of(outcome.best_weights) == hash_of(expected.best_weights));
      CHECK(outcome.validation_loss == expected.validation_loss);
    }
  }
}

TEST_CASE("half precision with far too large a loss scale skips steps until it fits, then learns") {
  std::set<uint64_t> seen;
  for (const int trainers : {1, 3}) {
    Folder folder;
    TrainingSystem::Config config = real_job(trainers, 1, Precision::kFloat16);
    config.checkpoint_directory = folder.path;
    config.spec.steps = 1;
    run(std::move(config));
    {
      const auto directory = CheckpointDirectory::open(folder.path).value();
      const Checkpoint saved = directory->newest(Log()).value();
      CheckpointHeader header = saved.header;
      header.state.scaler.scale = 0x1p30;
      auto part = std::make_shared<ShardState>();
      part->weights = saved.weights, part->m = saved.m, part->v = saved.v;
      REQUIRE(directory->write(header, {part}, nullptr).ok());
    }
    config = real_job(trainers, 1, Precision::kFloat16);
    config.checkpoint_directory = folder.path;
    config.spec.steps = 60;
    const TrainOutcome outcome = run(std::move(config));
    CHECK(outcome.skipped > 3);
    CHECK(outcome.skipped < 25);
    CHECK(outcome.steps == 60);
    for (const double loss : outcome.losses) CHECK(std::isfinite(loss));
    CHECK(outcome.losses.back() < outcome.losses.front());
    for (const float weight : outcome.weights) CHECK(std::isfinite(weight));
    seen.insert(hash_of(outcome.weights));
  }
  CHECK(seen.size() == 1);
}
