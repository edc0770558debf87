// Whole training jobs whose emulated GPUs add their gradients up over a ring.
#include "cards_jobs.h"

namespace fastserve {
namespace {

/// Two steps: in the second one's losses is what the first has summed.
TrainingSystem::Config tree_job(const std::vector<DeviceFactory>& cards, Precision precision) {
  TrainingSystem::Config config = cards_job(cards, precision);
  config.spec.steps = config.spec.evaluate_every = config.spec.evaluate_sequences = 2;
  return config;
}
TrainingSystem::Config tree_job(size_t cards, Precision precision) {
  return tree_job(std::vector<DeviceFactory>(cards, emulated()), precision);
}
TrainingSystem::Config ring_job(const std::vector<DeviceFactory>& cards, Precision precision) {
  TrainingSystem::Config config = tree_job(cards, precision);
  config.spec.reduce = GradientReduce::kRing;
  return config;
}
TrainingSystem::Config ring_job(size_t cards, Precision precision) {
  return ring_job(std::vector<DeviceFactory>(cards, emulated()), precision);
}

/// Cards that can copy and no more.
LinkFactory copies_alone() {
  return [](std::span<Device* const> devices) -> Result<std::unique_ptr<DeviceLink>> {
    std::vector<gpu::Runtime*> runtimes;
    for (Device* device : devices) runtimes.push_back(&gpu::runtime_of(*device));
    return simt::make_emulated_link(
        std::move(runtimes), Error{ErrorCode::kUnsupported, "there is no library", "NCCL", ""});
  };
}

/// How far a job of the tree goes apart from itself when its rate is a rounding off.
double rounding_of(Precision precision, const std::vector<float>& weights) {
  TrainingSystem::Config config = tree_job(1, precision);
  config.spec.learning_rate *= 1 + 2e-7;
  return std::max(distance(run(std::move(config)).weights, weights), 1e-7);
}

/// Floats on each of some cards, and what joins them.
struct Joined {
  explicit Joined(std::vector<int64_t> launches) {
    std::vector<Device*> all;
    for (const int64_t most : launches) {
      auto device = emulated({most})(1);
      REQUIRE(device.ok());
      auto memory = (*device)->allocate(16 * sizeof(float));
      REQUIRE(memory.ok());
      all.push_back(device->get());
      devices.push_back(std::move(*device));
      buffers.push_back(std::move(*memory));
    }
    auto made = emulated_link()(all);
    REQUIRE(made.ok());
    link = std::move(*made);
    REQUIRE(link->open_collectives().ok());
  }
  float* at(size_t card) const { return static_cast<float*>(buffers[card]->data()); }
  void put(size_t card, float value) const {
    const std::vector<float> values(16, value);
    devices[card]->copy_in(at(card), values.data(), 16 * sizeof(float));
  }
  float got(size_t card) const {
    std::vector<float> values(16);
    devices[card]->copy_out(values.data(), at(card), 16 * sizeof(float));
    return values.back();
  }
  void reduce(size_t to) const {
    std::vector<const float*> parts;
    for (size_t i = 0; i < buffers.size(); i++) parts.push_back(at(i));
    link->reduce(to, at(to), parts, 16);
  }

  std::vector<std::unique_ptr<Device>> devices;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers;
  std::unique_ptr<DeviceLink> link;
};

}  // namespace

TEST_CASE("cards that sum over a ring end near the tree's weights, in the same bits each time") {
  for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16}) {
    const TrainOutcome tree = run(tree_job(1, precision));
    const double rounding = rounding_of(precision, tree.weights);
    for (const size_t cards : {size_t{2}, size_t{3}}) {
      CAPTURE(cards);
      const TrainOutcome ring = run(ring_job(cards, precision));
      CHECK(ring.end == TrainEnd::kAllSteps);
      CHECK(ring.losses.front() == tree.losses.front());  // no sum has come into it
      CHECK(std::abs(ring.losses.back() - tree.losses.back()) <
            4 * rounding * std::abs(tree.losses.back()));
      CHECK(distance(ring.weights, tree.weights) < 4 * rounding);
      CHECK(distance(ring.best_weights, tree.best_weights) < 4 * rounding);
      CHECK(hash_of(ring.weights) != hash_of(tree.weights));
      if (cards == 3)
        CHECK(hash_of(run(ring_job(cards, precision)).weights) == hash_of(ring.weights));
    }
  }
}

TEST_CASE("a ring's bits are the same for more trainers, more shards, layers that are recomputed") {
  const uint64_t expected = hash_of(run(ring_job(3, Precision::kBFloat16)).weights);
  TrainingSystem::Config config = ring_job(3, Precision::kBFloat16);
  config.placement.trainers = 5;
  config.placement.shards = 6;
  config.placement.recompute = Recompute::kLayer;
  CHECK(hash_of(run(std::move(config)).weights) == expected);
}

TEST_CASE("a job over a ring says so, and goes on from each of its checkpoints in the same bits") {
  const uint64_t expected = hash_of(run(ring_job(3, Precision::kBFloat16)).weights);
  Folder folder;
  Lines lines;
  TrainingSystem::Config config = ring_job(3, Precision::kBFloat16);
  config.checkpoint_directory = folder.path;
  config.placement.optimiser.reset();
  config.log = lines.log();
  config.spec.steps = 1;
  CHECK(has(description_of(config), "; gradients summed over a ring"));
  config.spec.steps = 2;
  CHECK(hash_of(run(config).weights) == expected);
  CHECK_FALSE(lines.mention("not the same bits"));
}

TEST_CASE("a ring's checkpoint goes on by the tree and on another number of cards, and is told") {
  Folder folder;
  TrainingSystem::Config config = ring_job(3, Precision::kBFloat16);
  config.spec.steps = 1;
  config.checkpoint_directory = folder.path;
  run(config);
  const auto go_on = [&](TrainingSystem::Config next, int64_t steps) {
    Lines lines;
    next.spec.steps = steps;
    next.checkpoint_directory = folder.path;
    next.log = lines.log();
    run(std::move(next));
    return lines.text;
  };
  const std::string fewer = go_on(ring_job(2, Precision::kBFloat16), 2);
  CHECK(has(fewer, "+ring of 3 and goes on on"));
  CHECK(has(fewer, "+ring of 2: the result is as good, but not the same bits"));
  const std::string tree = go_on(tree_job(2, Precision::kBFloat16), 3);
  CHECK(has(tree, "+ring of 2 and goes on on"));
  CHECK(has(tree, "+optimiser: the result is as good, but not the same bits"));
}

TEST_CASE("a ring is refused where there is none: by what there is, and with what to do") {
  const auto refused = [](TrainingSystem::Config config, const char* why) {
    const Status status = end_of(std::move(config));
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().code == ErrorCode::kInvalidArgument);
    CHECK(status.error().where == "reduce");
    CHECK_MESSAGE(has(status.error().message(), why), status.error().message());
    CHECK(has(status.error().message(), "--reduce tree"));
  };
  refused(ring_job(1, Precision::kBFloat16), "there are not several cards");
  TrainingSystem::Config config = ring_job(2, Precision::kBFloat16);
  config.placement.optimiser = OptimiserPlace::kHost;
  refused(config, "a part of the optimiser each");
  config = real_job(2, 1, Precision::kBFloat16);  // on the CPU
  config.spec.reduce = GradientReduce::kRing;
  refused(config, "there are not several cards");
  config = ring_job(3, Precision::kBFloat16);
  config.spec.microbatches = 2;
  refused(config, "3 cards need as many microbatches, not 2");
  config = ring_job(3, Precision::kBFloat16);
  config.placement.trainers = 1;
  refused(config, "3 cards need as many trainers, not 1");
}

TEST_CASE(
    "cards that can only copy sum along the tree instead, in its bits, and the log says why") {
  Lines lines;
  TrainingSystem::Config config = ring_job(2, Precision::kBFloat16);
  config.link = copies_alone();
  config.log = lines.log();
  const uint64_t hash = hash_of(run(config).weights);
  CHECK(hash == hash_of(run(tree_job(1, Precision::kBFloat16)).weights));
  CHECK(lines.mention("summed along the step's tree all the same, by copies from card to card"));
  CHECK(lines.mention("NCCL: there is no library"));
  config.spec.steps = 1;
  CHECK_FALSE(has(description_of(config), "ring"));
}

TEST_CASE("whichever card is lost wherever in a ring's step, the job ends with that") {
  const auto job = [](const std::vector<DeviceFactory>& cards) {
    TrainingSystem::Config config = ring_job(cards, Precision::kBFloat16);
    config.spec.microbatches = 2;
    config.dataset = made_up_dataset(5000, 0);
    return config;
  };
  lose_each_card(job, {emulated(), emulated()}, 2, 8000);
}

TEST_CASE("a lost trainer's run is another card's, and its own card adds nothing") {
  const std::vector<float> whole = run(ring_job(2, Precision::kBFloat16)).weights;
  const double rounding = rounding_of(Precision::kBFloat16, whole);
  for (const int killed : {0, 1}) {
    auto system = TrainingSystem::start(ring_job(2, Precision::kBFloat16));
    REQUIRE(system.ok());
    (*system)->kill_trainer(killed);
    const auto outcome = (*system)->wait();
    REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
    CHECK(distance(outcome->weights, whole) < 4 * rounding);
  }
}

TEST_CASE("a ring's sum begins behind the card that gets it, and the answer goes to all") {
  const Joined three({0, 0, 0});
  CHECK(three.link->description() == "sums over a ring");
  CHECK(three.link->reduce_id() == "ring of 3");
  // 2^24 and one are 2^24: one is lost unless the other one comes first.
  const auto sum = [&](size_t to) {
    three.put(0, 16777216.0f), three.put(1, 1.0f), three.put(2, 1.0f);
    three.reduce(to);
    return three.got(to);
  };
  CHECK(sum(0) == 16777218.0f);  // (1 + 1) + 2^24
  CHECK(sum(1) == 16777216.0f);  // (1 + 2^24) + 1
  CHECK(sum(2) == 16777216.0f);
  float* const ranges[] = {three.at(0), three.at(1), three.at(2)};
  three.put(1, 5);
  three.link->broadcast(1, ranges, 16);
  CHECK(three.got(0) == 5);
  CHECK(three.got(2) == 5);
}

TEST_CASE("a collective that one card cannot begin is the others' failure, and not a wait") {
  const Joined three({0, 1, 0});
  for (size_t i = 0; i < 3; i++) three.put(i, 1);
  three.reduce(0);
  CHECK(three.got(0) == 3);
  three.reduce(0);  // the second launch loses it
  const Status lost = three.devices[1]->sync();
  REQUIRE_FALSE(lost.ok());
  CHECK(lost.error().code == ErrorCode::kUnavailable);
  for (const size_t other : {size_t{0}, size_t{2}}) {
    const Status told = three.devices[other]->sync();
    REQUIRE_FALSE(told.ok());
    CHECK(has(told.error().message(), "another card has failed"));
  }
}

}  // namespace fastserve
