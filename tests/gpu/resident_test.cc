// Whole training jobs that stay in the emulated GPU's memory: gradients, optimiser and all.
#include "gpu_jobs.h"
#include "train/checkpoint.h"
#include "train/device_memory.h"
#include "train/resident_backend.h"
#include "train/split_backend.h"

namespace fastserve {
namespace {

TrainingSystem::Config resident_job(int trainers, Precision precision, DeviceFactory devices) {
  return gpu_job(trainers, precision, std::move(devices), OptimiserPlace::kDevice);
}

/// The same devices, told what is wanted of their graphs.
DeviceFactory using_graphs(DeviceFactory make, const GraphUse& use) {
  return [=](int lanes) {
    auto device = make(lanes);
    if (device.ok()) (*device)->set_graph_use(use);
    return device;
  };
}

std::string resident_id() { return resident_numerics(*emulated()(1).value()); }

}  // namespace

TEST_CASE("a job that stays on the GPU ends in the same bits for any trainers, shards and units") {
  for (const Precision precision : {Precision::kBFloat16, Precision::kFloat16}) {
    const TrainOutcome one = run(resident_job(1, precision, emulated()));
    CHECK(one.end == TrainEnd::kAllSteps);
    CHECK(one.losses.back() < one.losses.front());
    TrainingSystem::Config config = resident_job(3, precision, emulated());
    config.placement.shards = 3;
    config.placement.recompute = Recompute::kLayer;
    const TrainOutcome many = run(std::move(config));
    CHECK(hash_of(one.weights) == hash_of(many.weights));
    CHECK(hash_of(one.best_weights) == hash_of(many.best_weights));
    // The CPU's AdamW rounds otherwise, here and there. How far that leads (a half that rounds the
    // other way changes all gradients after it) shows the same job with its rate a rounding off.
    config = resident_job(1, precision, emulated());
    config.spec.learning_rate *= 1 + 2e-7;
    const double rounding = distance(run(std::move(config)).weights, one.weights);
    const TrainOutcome split = run(gpu_job(1, precision, emulated(), OptimiserPlace::kHost));
    const double apart = distance(split.weights, one.weights);
    CHECK(apart < std::max(4 * rounding, 1e-7));
  }
}

TEST_CASE(
    "a job on a GPU has the same bits as graphs and without, for trainers side by side, too") {
  for (const Precision precision : {Precision::kBFloat16, Precision::kFloat16}) {
    const auto job = [&](int trainers, const GraphUse& use) {
      TrainingSystem::Config config =
          resident_job(trainers, precision, using_graphs(emulated(), use));
      config.spec.steps = 5;
      return config;
    };
    const TrainOutcome plain = run(job(1, {.wanted = false}));
    const auto one = std::make_shared<std::atomic<int64_t>>(0),
               many = std::make_shared<std::atomic<int64_t>>(0);
    Lines lines;
    const TrainOutcome graphs = run(job(1, {true, lines.log(), one}));
    CHECK(hash_of(graphs.weights) == hash_of(plain.weights));
    CHECK(hash_of(graphs.best_weights) == hash_of(plain.best_weights));
    CHECK(graphs.losses == plain.losses);
    CHECK(one->load() > 40);
    CHECK(lines.mention("training passes are started as graphs"));
    // Some add gradients and update weights while another's pass is captured.
    TrainingSystem::Config config = job(3, {true, {}, many});
    config.placement.shards = 3;
    config.placement.recompute = Recompute::kLayer;
    CHECK(hash_of(run(std::move(config)).weights) == hash_of(plain.weights));
    CHECK(many->load() > 40);
  }
}

TEST_CASE("a job whose card makes no graphs has the same bits, and the log says why once") {
  Lines lines;
  const auto full = [](int) -> Result<std::unique_ptr<Device>> {
    simt::Options options;
    options.own_memory = true;
    options.graph_parts = 5;
    return gpu::make_gpu_device(simt::make_emulated_runtime(options));
  };
  const auto job = [](DeviceFactory devices) {
    return resident_job(1, Precision::kBFloat16, std::move(devices));
  };
  const TrainOutcome without = run(job(using_graphs(full, {true, lines.log()})));
  CHECK(hash_of(without.weights) == hash_of(run(job(emulated())).weights));
  CHECK(lines.mention("training passes start their kernels one by one, since no graph can be had"));
  CHECK(lines.text.find("one by one") == lines.text.rfind("one by one"));
}

TEST_CASE("from step to step nothing as large as the parameters crosses the bus") {
  const auto moved = [](int64_t steps, OptimiserPlace place) {
    const auto traffic = std::make_shared<simt::Traffic>();
    TrainingSystem::Config config =
        gpu_job(2, Precision::kBFloat16, emulated({}, size_t{1} << 30, traffic), place);
    config.spec.steps = steps;
    config.spec.evaluate_every = 0;
    config.spec.checkpoint_every = 0;
    run(std::move(config));
    return traffic->in + traffic->out;
  };
  const uint64_t elements =
      ParameterLayout(real_job(1, 1, Precision::kFloat32).spec.model).elements();
  const auto each = [&](OptimiserPlace place) { return (moved(4, place) - moved(2, place)) / 2; };
  // Seven microbatches' tokens, and the squares of a model whose tiles are tiny.
  CHECK(each(OptimiserPlace::kDevice) < elements / 4);
  CHECK(each(OptimiserPlace::kHost) > elements * 4 * 8);
}

TEST_CASE("a job goes on from a checkpoint of either kind where it was made, in the same bits") {
  for (const OptimiserPlace place : {OptimiserPlace::kDevice, OptimiserPlace::kHost}) {
    const auto whole = hash_of(run(gpu_job(1, Precision::kBFloat16, emulated(), place)).weights);
    Folder folder;
    TrainingSystem::Config config = gpu_job(1, Precision::kBFloat16, emulated(), place);
    config.checkpoint_directory = folder.path;
    config.spec.steps = 2;
    run(config);
    Lines lines;
    config.placement.optimiser.reset();
    config.spec.steps = 3;
    config.resume = TrainingSystem::Resume::kRequired;
    config.log = lines.log();
    CHECK(hash_of(run(config).weights) == whole);
    CHECK_FALSE(lines.mention("not the same bits"));
  }
}

TEST_CASE("a job goes on from a checkpoint of the other kind when it is told to, and says so") {
  const OptimiserPlace places[] = {OptimiserPlace::kDevice, OptimiserPlace::kHost};
  for (const int first : {0, 1}) {
    const auto whole = run(gpu_job(1, Precision::kFloat32, emulated(), places[first])).weights;
    Folder folder;
    TrainingSystem::Config config = gpu_job(1, Precision::kFloat32, emulated(), places[first]);
    config.checkpoint_directory = folder.path;
    config.spec.steps = 2;
    run(config);
    Lines lines;
    config.placement.optimiser = places[1 - first];
    config.spec.steps = 3;
    config.log = lines.log();
    CHECK(distance(whole, run(config).weights) < 1e-3);
    CHECK(lines.mention("not the same bits"));
    CHECK(lines.mention(resident_id()));
  }
}

TEST_CASE("a card that is lost wherever in a step ends the job, and every checkpoint is good") {
  const auto job = [](DeviceFactory devices) {
    TrainingSystem::Config config = resident_job(1, Precision::kFloat32, std::move(devices));
    config.spec.microbatches = 2;
    return config;
  };
  const uint64_t expected = hash_of(run(job(emulated())).weights);
  int began = 0;
  for (int64_t launches = 60; launches < 5000; launches = launches * 5 / 4) {
    Folder folder;
    TrainingSystem::Config config = job(emulated({launches}));
    config.checkpoint_directory = folder.path;
    auto system = TrainingSystem::start(std::move(config));
    Status status;
    if (!system.ok())
      status = system.error();
    else if (const auto outcome = (*system)->wait(); !outcome.ok())
      status = outcome.error();
    CAPTURE(launches);
    if (status.ok()) break;  // it needed no more
    CHECK(status.error().code == ErrorCode::kUnavailable);
    if (system.ok()) system->reset();
    if (!CheckpointDirectory::holds_any(folder.path)) continue;
    began++;
    config = job(emulated());
    config.checkpoint_directory = folder.path;
    config.resume = TrainingSystem::Resume::kRequired;
    CHECK(hash_of(run(std::move(config)).weights) == expected);
  }
  CHECK(began > 1);
}

TEST_CASE(
    "a card that is lost at the very end is an error, and zeros are never what a job ends in") {
  const auto job = [](DeviceFactory devices) {
    TrainingSystem::Config config = resident_job(1, Precision::kFloat32, std::move(devices));
    config.spec.microbatches = 1;
    config.spec.steps = 2;
    config.dataset = made_up_dataset(5000, 0);  // nothing to evaluate on
    return config;
  };
  const uint64_t expected = hash_of(run(job(emulated())).weights);
  const auto ends_well = [&](int64_t launches) {
    const auto system = TrainingSystem::start(job(emulated({launches})));
    if (!system.ok()) return false;
    const auto outcome = (*system)->wait();
    if (outcome.ok()) CHECK(hash_of(outcome->weights) == expected);
    return outcome.ok();
  };
  int64_t too_few = 1, enough = 4096;
  REQUIRE(ends_well(enough));
  while (enough - too_few > 1) {
    const int64_t middle = (too_few + enough) / 2;
    (ends_well(middle) ? enough : too_few) = middle;
  }
  CHECK(too_few > 100);
}

TEST_CASE("what a library may take of a card's memory is counted before a job begins") {
  struct Greedy final : gpu::AttentionEngine {
    explicit Greedy(uint64_t bytes) : scratch(bytes) {}
    std::string name() override { return "greedy"; }
    bool supports(const AttentionForward&, Precision) override { return false; }
    bool supports(const AttentionBackward&, Precision) override { return false; }
    void forward(const AttentionForward&, Precision) override {}
    void backward(const AttentionBackward&, Precision) override {}
    uint64_t most_scratch() override { return scratch; }
    uint64_t scratch;
  };
  const ModelConfig model = gpu_job(1, Precision::kFloat32, {}, OptimiserPlace::kDevice).spec.model;
  const ParameterLayout layout(model);
  constexpr int kRows = 96;
  const DeviceShare all{1, true};
  const auto need = [&](Recompute recompute) {
    return device_need(model, layout, Precision::kFloat32, kRows, all, recompute).total();
  };
  const uint64_t saved = need(Recompute::kNone) - need(Recompute::kLayer);
  const auto device_beside = [&](uint64_t bytes) {
    simt::Options options;
    options.memory = 2 * need(Recompute::kNone);
    return gpu::make_gpu_device(simt::make_emulated_runtime(options), nullptr,
                                std::make_unique<Greedy>(bytes));
  };
  const uint64_t spare = device_beside(0)->available_memory() - need(Recompute::kNone);
  const auto chosen_beside = [&](uint64_t bytes) {
    return choose_recompute(*device_beside(spare + bytes), model, layout, Precision::kFloat32,
                            kRows, all, {});
  };
  CHECK(chosen_beside(0).value() == Recompute::kNone);
  CHECK(chosen_beside(1).value() == Recompute::kLayer);
  CHECK(chosen_beside(saved).value() == Recompute::kLayer);
  const auto refused = chosen_beside(saved + 1);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().message().find("microbatches of 95 tokens fit") != std::string::npos);
}

TEST_CASE("what the memory of a card cannot hold is recomputed, then left to the host, and told") {
  const auto job = [](size_t memory) {
    TrainingSystem::Config config =
        gpu_job(1, Precision::kFloat32, emulated({}, memory), OptimiserPlace::kDevice);
    config.placement.optimiser.reset();
    config.spec.batch = 16;
    config.spec.microbatches = 1;
    config.spec.steps = 1;
    return config;
  };
  const ModelConfig model = job(0).spec.model;
  const ParameterLayout layout(model);
  const auto need = [&](const DeviceShare& share, Recompute recompute) {
    return device_need(model, layout, Precision::kFloat32, 16 * 6, share, recompute).total();
  };
  const DeviceShare all{1, true};
  const uint64_t roomy = need(all, Recompute::kNone), tight = need(all, Recompute::kLayer);
  REQUIRE(tight < roomy);
  const auto plan_of = [&](const TrainingSystem::Config& config) {
    const auto system = TrainingSystem::start(config);
    REQUIRE_MESSAGE(system.ok(), system.error().message());
    REQUIRE((*system)->wait().ok());
    return (*system)->description();
  };
  const auto has = [](const std::string& text, const char* words) {
    return text.find(words) != std::string::npos;
  };
  constexpr size_t kSlack = 96 << 10;  // what the emulator puts around each piece
  std::string text = plan_of(job(roomy + kSlack));
  CHECK(has(text, "optimiser on the device"));
  CHECK_FALSE(has(text, "recomputed"));
  text = plan_of(job(tight + kSlack));
  CHECK(has(text, "optimiser on the device; layers recomputed"));
  Lines lines;
  TrainingSystem::Config config = job(tight - kSlack / 8);
  config.log = lines.log();
  CHECK_FALSE(has(plan_of(config), "optimiser on the device"));
  CHECK(lines.mention("stays with the host"));
  config.placement.optimiser = OptimiserPlace::kDevice;
  const auto refused = TrainingSystem::start(config);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::kResourceExhausted);
  CHECK(has(refused.error().message(), "optimiser"));
  const auto hopeless = TrainingSystem::start([&] {
    TrainingSystem::Config tiny = job(100 << 10);
    tiny.placement.optimiser = OptimiserPlace::kDevice;
    return tiny;
  }());
  REQUIRE_FALSE(hopeless.ok());
  CHECK(has(hopeless.error().hint, "--optimiser host"));
}

}  // namespace fastserve
