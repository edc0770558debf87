// Whole training jobs whose gradients are computed in the emulated GPU's own memory, and whose
// optimiser is the host's.
#include "gpu_jobs.h"
#include "in_process_cluster.h"
#include "train/split_backend.h"

namespace fastserve {
namespace {

TrainingSystem::Config gpu_job(int trainers, Precision precision, DeviceFactory devices) {
  return gpu_job(trainers, precision, std::move(devices), OptimiserPlace::kHost);
}

/// What the cluster makes of a job that one process would run on one GPU; `lines` is told.
Result<TrainOutcome> train_on(InProcessCluster& cluster, Lines& lines) {
  Folder folder;
  TrainingSystem::Config config = gpu_job(1, Precision::kBFloat16, emulated());
  config.checkpoint_directory = folder.path;
  config.log = lines.log();
  return cluster.coordinator().train(std::move(config), "job", {});
}

/// A GPU that opens so many times: a node's opens twice for the node to tell what it is.
DeviceFactory emulated_until(int opens) {
  const auto opened = std::make_shared<std::atomic<int>>(0);
  return [=, make = emulated()](int lanes) -> Result<std::unique_ptr<Device>> {
    if ((*opened)++ < opens) return make(lanes);
    return Error{ErrorCode::kUnavailable, "fell off the bus", "GPU 1", ""};
  };
}

}  // namespace

TEST_CASE(
    "a source with its own memory gives the host the gradient, whatever tiles were refreshed") {
  const ModelConfig model = real_job(1, 1, Precision::kFloat32).spec.model;
  const ParameterLayout layout(model);
  const auto gpu = make_device_backend(model, Precision::kFloat32, emulated(), portable_cpu());
  const auto cpu = make_device_backend(model, Precision::kFloat32, portable_cpu());
  REQUIRE((gpu.ok() && cpu.ok()));
  const auto on_gpu = (*gpu)->make_source(1, 12), on_cpu = (*cpu)->make_source(1, 12);
  REQUIRE_MESSAGE(on_gpu.ok(), on_gpu.error().message());
  const Microbatch batch = short_batch();
  std::vector<float> ours(layout.elements()), truth(layout.elements());
  const auto compare = [&] {
    const auto loss = (*on_gpu)->run(batch, 0.5f, ours.data());
    const auto expected = (*on_cpu)->run(batch, 0.5f, truth.data());
    REQUIRE_MESSAGE(loss.ok(), loss.error().message());
    CHECK(*loss == doctest::Approx(*expected).epsilon(1e-5));
    CHECK(distance(truth, ours) < 1e-5);
  };
  for (auto* backend : {gpu->get(), cpu->get()}) {
    initialise_parameters(model, layout, 3, backend->masters());
    backend->refresh_all();
  }
  compare();
  // Some tiles of some matrices, as shards of another node bring them.
  for (size_t i = 1; i < (*cpu)->tiles().size(); i += 3)
    for (auto* backend : {gpu->get(), cpu->get()}) {
      const ParameterTile tile = backend->tiles()[i];
      for (float& w : backend->masters().subspan(tile.offset, tile.size)) w += 0.05f;
      backend->refresh(tile);
    }
  compare();
  std::vector<float> twice = ours;
  (*on_gpu)->add(twice.data(), ours.data());
  CHECK(twice[5] == 2 * ours[5]);
  const auto alone = (*on_gpu)->run(batch, 1, nullptr);
  REQUIRE(alone.ok());
  CHECK(*alone == doctest::Approx((*on_cpu)->run(batch, 1, nullptr).value()).epsilon(1e-5));
}

TEST_CASE(
    "a gradient comes out range by range, last layers first, and each is whole when it is told") {
  const ModelConfig model = real_job(1, 1, Precision::kFloat32).spec.model;
  const ParameterLayout layout(model);
  const auto gpu = make_device_backend(model, Precision::kFloat32, emulated(), portable_cpu());
  REQUIRE(gpu.ok());
  initialise_parameters(model, layout, 3, (*gpu)->masters());
  (*gpu)->refresh_all();
  const auto source = (*gpu)->make_source(1, 12);
  REQUIRE(source.ok());
  std::vector<float> truth(layout.elements()), grad(layout.elements());
  REQUIRE((*source)->run(short_batch(), 1, truth.data()).ok());
  struct Flow final : PassFlow {
    Flow(const std::vector<float>& t, const std::vector<float>& g) : truth(t), grad(g) {}
    bool await_weights(size_t end) override {
      asked.push_back(end);
      return asked.size() != refuse_at;
    }
    void gradient_final(size_t from) override {
      for (size_t i = from; i < told; i++) wrong += !(grad[i] == truth[i]);
      CHECK(from < told);
      told = from;
      times++;
    }
    const std::vector<float>&truth, &grad;
    size_t told = SIZE_MAX, wrong = 0, refuse_at = 0;
    int times = 0;
    std::vector<size_t> asked;
  };
  Flow flow(truth, grad);
  flow.told = truth.size();
  REQUIRE((*source)->run_along(short_batch(), 1, grad.data(), flow).ok());
  CHECK(flow.told == 0);
  CHECK(flow.wrong == 0);
  CHECK(flow.times == 2 + 2 * model.layers);
  CHECK(flow.asked.size() == size_t(2 + model.layers));
  CHECK(std::is_sorted(flow.asked.begin(), flow.asked.end()));
  Flow stopped(truth, grad);
  stopped.refuse_at = 2;
  REQUIRE((*source)->run_along(short_batch(), 1, grad.data(), stopped).ok());
  CHECK(stopped.times == 0);
}

TEST_CASE(
    "a gradient whose card is lost on the way back is told as far as it came, and no further") {
  const ModelConfig model = real_job(1, 1, Precision::kFloat32).spec.model;
  const ParameterLayout layout(model);
  int some = 0;
  for (int64_t launches = 40; launches < 120; launches += 10) {
    const auto gpu =
        make_device_backend(model, Precision::kFloat32, emulated({0, launches}), portable_cpu());
    REQUIRE(gpu.ok());
    initialise_parameters(model, layout, 3, (*gpu)->masters());
    (*gpu)->refresh_all();
    const auto source = (*gpu)->make_source(1, 12);
    REQUIRE(source.ok());
    std::vector<float> grad(layout.elements());
    struct Flow final : PassFlow {
      explicit Flow(const std::vector<float>& g) : grad(g), told(g.size()) {}
      bool await_weights(size_t) override { return true; }
      void gradient_final(size_t from) override {
        // Zeros stand for what did not come; the last layers' vectors are never all zero.
        whole = whole && std::any_of(grad.begin() + ptrdiff_t(from), grad.begin() + ptrdiff_t(told),
                                     [](float g) { return g != 0; });
        told = from;
      }
      const std::vector<float>& grad;
      size_t told;
      bool whole = true;
    } flow(grad);
    const auto loss = (*source)->run_along(short_batch(), 1, grad.data(), flow);
    if (loss.ok()) continue;
    CHECK(loss.error().code == ErrorCode::kUnavailable);
    CHECK(flow.told > 0);
    CHECK(flow.whole);
    some += flow.told < grad.size();
  }
  CHECK(some > 0);
}

TEST_CASE("a job on a GPU ends in the same bits for one trainer or two, and names both sides") {
  const TrainOutcome one = run(gpu_job(1, Precision::kBFloat16, emulated()));
  const TrainOutcome two = run(gpu_job(2, Precision::kBFloat16, emulated()));
  CHECK(one.end == TrainEnd::kAllSteps);
  CHECK(one.losses.back() < one.losses.front());
  CHECK(hash_of(one.weights) == hash_of(two.weights));
  const std::string id = training_numerics(emulated(), portable_cpu()).value();
  CHECK(id.find("gpu/emulated") != std::string::npos);
  CHECK(id.find("+cpu/portable") != std::string::npos);
  CHECK(training_numerics(portable_cpu(), {}).value() == "cpu/portable");
}

TEST_CASE("a GPU that is lost in mid-step leaves, says so, and the others end in the same bits") {
  const uint64_t expected = hash_of(run(gpu_job(1, Precision::kFloat32, emulated())).weights);
  for (const int64_t launches : {int64_t{30}, int64_t{333}}) {
    Lines lines;
    // The backend's own comes first and computes nothing; the second belongs to trainer 0.
    TrainingSystem::Config config = gpu_job(2, Precision::kFloat32, emulated({0, launches}));
    config.log = lines.log();
    CHECK(hash_of(run(std::move(config)).weights) == expected);
    CHECK(lines.mention("trainer 0 is lost (emulated GPU: is lost"));
    CHECK(lines.mention("go on"));
  }
}

TEST_CASE("when the only GPU is lost the job ends with its error, and goes on from a checkpoint") {
  const auto job = [](DeviceFactory devices) {
    TrainingSystem::Config config = gpu_job(1, Precision::kFloat32, std::move(devices));
    config.spec.steps = 8;
    return config;
  };
  const uint64_t expected = hash_of(run(job(emulated())).weights);
  Folder folder;
  TrainingSystem::Config config = job(emulated({0, 2200}));  // some steps before the last
  config.checkpoint_directory = folder.path;
  {
    const auto system = TrainingSystem::start(std::move(config));
    REQUIRE(system.ok());
    const auto outcome = (*system)->wait();
    REQUIRE_FALSE(outcome.ok());
    CHECK(outcome.error().code == ErrorCode::kUnavailable);
  }
  config = job(emulated());
  config.checkpoint_directory = folder.path;
  config.resume = TrainingSystem::Resume::kRequired;
  CHECK(hash_of(run(std::move(config)).weights) == expected);
}

TEST_CASE("nodes with GPUs train to the bits of one process, without those of other bits or lost") {
  const uint64_t expected = hash_of(run(gpu_job(1, Precision::kBFloat16, emulated())).weights);
  Lines lines;
  InProcessCluster cluster(lines.log());
  cluster.add("cpu", 8);
  cluster.compute_on(emulated(), portable_cpu());
  cluster.add("one");
  cluster.add("two");
  // Two devices to tell what it is, one that pins for its part, and the one that is lost.
  cluster.compute_on(emulated({0, 0, 0, 150}), portable_cpu());
  cluster.add("lost", 1, {"trainer"});
  cluster.wait_for_nodes(4);
  const auto outcome = train_on(cluster, lines);
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(hash_of(outcome->weights) == expected);
  CHECK(lines.mention("emulated GPU: is lost"));
  for (const NodeStatus& node : cluster.coordinator().nodes())
    CHECK((node.name == "cpu") == (node.numerics_id.find("gpu/") == std::string::npos));
}

TEST_CASE("a node with two GPUs trains on both to the bits of one, and goes on with either") {
  const uint64_t expected = hash_of(run(gpu_job(1, Precision::kBFloat16, emulated())).weights);
  constexpr int64_t kEarly = 60, kLate = 150;
  for (const int64_t first : {int64_t{0}, kEarly, kLate})
    for (const int64_t second : {int64_t{0}, kEarly}) {
      CAPTURE(first);
      CAPTURE(second);
      Lines lines;
      InProcessCluster cluster(lines.log());
      const auto traffic = std::make_shared<simt::Traffic>();
      // Of the first: two devices to tell what it is, two that open and pin, and its trainer's.
      cluster.compute_on(emulated({0, 0, 0, 0, first}), portable_cpu(),
                         {emulated({0, second}, size_t{1} << 30, traffic)});
      cluster.add("both");
      cluster.compute_on(emulated(), portable_cpu());
      cluster.add("one");
      cluster.wait_for_nodes(2);
      for (const NodeStatus& node : cluster.coordinator().nodes())
        CHECK((node.name == "both") == node.device.starts_with("2 x "));
      const auto outcome = train_on(cluster, lines);
      REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
      CHECK(hash_of(outcome->weights) == expected);
      CHECK(traffic->in > 0);
      CHECK(lines.mention("goes on with 1 of 2 trainers") == (first + second > 0));
      CHECK(lines.mention("emulated GPU: is lost") == (first + second > 0));
    }
}

TEST_CASE("a job begins without a node whose only GPU is lost, and the node's status says why") {
  const uint64_t expected = hash_of(run(gpu_job(1, Precision::kBFloat16, emulated())).weights);
  Lines lines;
  InProcessCluster cluster(lines.log());
  cluster.compute_on(emulated_until(2), portable_cpu());
  cluster.add("lost");
  cluster.compute_on(emulated(), portable_cpu());
  cluster.add("whole");
  cluster.wait_for_nodes(2);
  const auto outcome = train_on(cluster, lines);
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(hash_of(outcome->weights) == expected);
  const auto nodes = cluster.coordinator().nodes();
  REQUIRE(nodes.size() == 2);
  CHECK(nodes[0].note == "not used for now: GPU 1: fell off the bus");
  CHECK(nodes[1].note.empty());
}

TEST_CASE("a node whose second GPU does not open works with the first, and with none says why") {
  const uint64_t expected = hash_of(run(gpu_job(1, Precision::kBFloat16, emulated())).weights);
  for (const bool any : {true, false}) {
    Lines lines;
    InProcessCluster cluster(lines.log());
    cluster.compute_on(any ? emulated() : emulated_until(2), portable_cpu(), {emulated_until(0)});
    cluster.add("half");
    cluster.wait_for_nodes(1);
    const auto outcome = train_on(cluster, lines);
    CHECK(lines.mention("GPU 1: fell off the bus"));
    CHECK(lines.mention("goes on without a device") == any);
    REQUIRE(outcome.ok() == any);
    if (any) CHECK(hash_of(outcome->weights) == expected);
  }
}

TEST_CASE("a job that the GPU's memory cannot hold is refused with what fits, and that does fit") {
  TrainingSystem::Config config = gpu_job(1, Precision::kFloat32, emulated({}, 1400 << 10));
  config.spec.batch = 64;
  config.spec.microbatches = 1;
  config.placement.recompute = Recompute::kNone;
  const auto refused = TrainingSystem::start(config);
  REQUIRE_FALSE(refused.ok());
  const Error& error = refused.error();
  CHECK(error.code == ErrorCode::kResourceExhausted);
  CHECK(error.message().find("activations of 384 tokens") != std::string::npos);
  const size_t at = error.what.find("microbatches of ");
  REQUIRE_MESSAGE(at != std::string::npos, error.message());
  const int fits = std::atoi(error.what.c_str() + at + 16);
  CHECK(fits >= config.spec.block);
  config.spec.microbatches = (64 * config.spec.block + fits - 1) / fits + 1;
  config.spec.steps = 1;
  run(std::move(config));
  const auto hopeless =
      TrainingSystem::start(gpu_job(1, Precision::kFloat32, emulated({}, 100 << 10)));
  REQUIRE_FALSE(hopeless.ok());
  CHECK(hopeless.error().hint.find("--device cpu") != std::string::npos);
}

}  // namespace fastserve
