// Whole training jobs that several emulated GPUs of one host share out.
#include "cards_jobs.h"
#include "gpu/matmul_engine.h"
#include "train/device_memory.h"

namespace fastserve {
namespace {

/// An emulated card whose products are another engine's by name.
DeviceFactory unlike_card() {
  return [](int) -> Result<std::unique_ptr<Device>> {
    simt::Options options;
    options.own_memory = true;
    options.memory = size_t{1} << 30;
    auto runtime = simt::make_emulated_runtime(options);
    auto engine = gpu::make_mma_engine(*runtime);
    return gpu::make_gpu_device(std::move(runtime), std::move(engine));
  };
}

}  // namespace

TEST_CASE("a job ends in the same bits on one card, two and three") {
  for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16}) {
    const TrainOutcome one = run(cards_job(1, precision));
    CHECK(one.end == TrainEnd::kAllSteps);
    CHECK(one.losses.back() < one.losses.front());
    for (const size_t cards : {size_t{2}, size_t{3}}) {
      const TrainOutcome all = run(cards_job(cards, precision));
      CHECK(hash_of(one.weights) == hash_of(all.weights));
      CHECK(hash_of(one.best_weights) == hash_of(all.best_weights));
      CHECK(one.losses == all.losses);
    }
  }
}

TEST_CASE("cards end in the same bits for other trainers, shards and layers that are recomputed") {
  const uint64_t expected = hash_of(run(cards_job(1, Precision::kBFloat16)).weights);
  TrainingSystem::Config config = cards_job(2, Precision::kBFloat16);
  config.placement.trainers = 3;
  config.placement.shards = 3;
  config.placement.recompute = Recompute::kLayer;
  CHECK(hash_of(run(std::move(config)).weights) == expected);
  config = cards_job(3, Precision::kBFloat16);
  config.placement.trainers = 1;  // two cards hold their part of the optimiser and nothing else
  CHECK(hash_of(run(std::move(config)).weights) == expected);
}

TEST_CASE("a job goes on from its checkpoints on more cards and on fewer, in the same bits") {
  const uint64_t expected = hash_of(run(cards_job(1, Precision::kBFloat16)).weights);
  Folder folder;
  Lines lines;
  int64_t steps = 0;
  for (const size_t cards : {size_t{3}, size_t{1}, size_t{2}}) {
    TrainingSystem::Config config = cards_job(cards, Precision::kBFloat16);
    config.spec.steps = ++steps;
    config.checkpoint_directory = folder.path;
    config.placement.optimiser.reset();
    config.log = lines.log();
    const TrainOutcome outcome = run(std::move(config));
    if (steps == 3) CHECK(hash_of(outcome.weights) == expected);
  }
  CHECK_FALSE(lines.mention("not the same bits"));
}

TEST_CASE(
    "whichever card is lost wherever in a step, the job ends with that, and goes on without") {
  const auto job = [](const std::vector<DeviceFactory>& cards) {
    TrainingSystem::Config config = cards_job(cards, Precision::kFloat32);
    config.spec.microbatches = 2;
    config.spec.steps = 2;
    config.dataset = made_up_dataset(5000, 0);
    return config;
  };
  lose_each_card(job, {emulated()}, 1.5, 4000);
}

TEST_CASE("two cards have room for what one has not, since each holds half of the optimiser") {
  TrainingSystem::Config config = cards_job(1, Precision::kFloat32);
  config.spec.steps = 1;
  config.placement.optimiser.reset();
  const ParameterLayout layout(config.spec.model);
  TrainPlacement placement = config.placement;
  const auto need = [&](int cards) {
    placement.cards = placement.trainers = placement.shards = cards;
    const TrainPlan plan = plan_training(config.spec, placement, 1);
    return device_need(config.spec.model, layout, Precision::kFloat32, plan.max_rows,
                       resident_share(plan), Recompute::kLayer)
        .total();
  };
  constexpr size_t kSlack = 96 << 10;  // what the emulator puts around each piece
  REQUIRE(need(2) + kSlack < need(1));
  const DeviceFactory small = emulated({}, need(2) + kSlack);
  config.make_device = small;
  CHECK_FALSE(has(description_of(config), "optimiser on the device"));
  config.more_devices = {small};
  config.placement.trainers = 2;
  const std::string text = description_of(config);
  CHECK(has(text, "2 x gpu emulated"));
  CHECK(has(text, "optimiser on the device"));
}

TEST_CASE("a card that is too small is named, or the optimiser is left to the host") {
  TrainingSystem::Config config =
      cards_job({emulated(), emulated({}, 300 << 10)}, Precision::kFloat32);
  config.spec.steps = 1;
  const Status refused = end_of(config);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::kResourceExhausted);
  CHECK(has(refused.error().message(), "optimiser"));
}

TEST_CASE("with the optimiser on the host two cards take turns with trainers, to the same bits") {
  const auto host_job = [](size_t cards) {
    TrainingSystem::Config config = cards_job(cards, Precision::kBFloat16);
    config.placement.optimiser = OptimiserPlace::kHost;
    config.placement.trainers = 0;
    return config;
  };
  const uint64_t expected = hash_of(run(host_job(1)).weights);
  TrainingSystem::Config config = host_job(2);
  const auto made = std::make_shared<std::atomic<int>>(0);
  config.more_devices = {[made, make = emulated()](int lanes) {
    (*made)++;
    return make(lanes);
  }};
  CHECK(hash_of(run(std::move(config)).weights) == expected);
  CHECK(*made == 2);  // one to tell what it is, one that a trainer computes on
}

TEST_CASE("cards that compute unlike bits are refused, and both are named") {
  const Status refused = end_of(cards_job({emulated(), unlike_card()}, Precision::kFloat32));
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::kInvalidArgument);
  CHECK(has(refused.error().message(), "computes other bits"));
  CHECK(has(refused.error().message(), "cards of one kind"));
}

TEST_CASE("a fresh job has as many microbatches as give each card the same work, and says so") {
  TrainingSystem::Config config = cards_job(3, Precision::kFloat32);
  config.spec.microbatches = 0;
  config.spec.steps = 1;
  CHECK(has(description_of(config), "3 microbatches"));
  Lines lines;
  config.spec.microbatches = 2;
  config.log = lines.log();
  run(std::move(config));
  CHECK(lines.mention("has work for 2 of 3 cards"));
}

TEST_CASE("a copy between cards brings the bytes, and tells where none can come from") {
  auto healthy = emulated()(1), failing = emulated({1})(1);
  REQUIRE((healthy.ok() && failing.ok()));
  Device* const devices[] = {healthy->get(), failing->get()};
  const auto link = emulated_link()(devices);
  REQUIRE(link.ok());
  const auto here = (*healthy)->allocate(64), there = (*failing)->allocate(64);
  REQUIRE((here.ok() && there.ok()));
  const std::vector<float> sent(16, 2.5f);
  std::vector<float> got(16);
  (*failing)->copy_in((*there)->data(), sent.data(), 64);
  (*link)->copy(0, (*here)->data(), 1, (*there)->data(), 64);
  (*healthy)->copy_out(got.data(), (*here)->data(), 64);
  CHECK(got == sent);
  CHECK((*healthy)->sync().ok());
  const auto ops = (*failing)->make_train_ops(Precision::kFloat32);
  auto* const floats = static_cast<float*>((*there)->data());
  for (int i = 0; i < 2; i++) ops->add(floats, floats, floats, 16);  // the second loses it
  (*link)->copy(0, (*here)->data(), 1, floats, 64);
  const Status told = (*healthy)->sync();
  REQUIRE_FALSE(told.ok());
  CHECK(has(told.error().message(), "what another card was to send has not come"));
  CHECK((*healthy)->sync().ok());  // it was told
}

}  // namespace fastserve
