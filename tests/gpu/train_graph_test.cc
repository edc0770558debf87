// Training passes that run as captured graphs, beside passes that start each kernel.
#include <doctest/doctest.h>

#include "gpu/gpu_device.h"
#include "gpu/simt/emulated_runtime.h"
#include "gpu/tables.h"
#include "model/transformer/step_graphs.h"
#include "tests/gpu/even_config.h"

namespace fastserve {
namespace {

/// A device that says what became of its graphs.
struct Card {
  explicit Card(bool graphs, simt::Options options = {}) {
    options.own_memory = true;
    device = gpu::make_gpu_device(simt::make_emulated_runtime(options));
    device->set_graph_use({graphs, Log([this](LogLevel level, std::string_view line) {
                             (level == LogLevel::kWarning ? warnings : lines).emplace_back(line);
                           }),
                           started});
  }
  std::vector<std::string> lines, warnings;
  std::shared_ptr<std::atomic<int64_t>> started = std::make_shared<std::atomic<int64_t>>(0);
  std::unique_ptr<Device> device;
};

/// One turn of a job: a microbatch's lengths, and which gradient buffer takes it (-1: evaluation).
struct Turn {
  std::vector<int> lengths;
  int buffer;
};

const std::vector<Turn> kTurns = {
    {{17, 1, 9}, 0}, {{17, 1, 9}, 0}, {{17, 1, 9}, 1}, {{17, 1, 9}, 0}, {{6, 6}, 0},
    {{17, 1, 9}, 1}, {{17, 1, 9}, 1}, {{6, 6}, -1},    {{6, 6}, 0},     {{27}, -1},
    {{6, 6}, -1},    {{17, 1, 9}, 0}, {{27}, -1},      {{9, 1, 17}, 0}, {{6, 6}, 0},
    {{6, 6}, -1},    {{17, 1, 9}, 1}, {{9, 1, 17}, 0}, {{9, 1, 17}, 0}};

/// Of kTurns' parts those that come back in scratch memory as it was.
constexpr int64_t kStarted = 23;

/// Every loss and gradient of a job whose weights change in between.
std::vector<float> job(Card& card, const ModelConfig& config, Precision precision,
                       const std::vector<Turn>& turns, Recompute recompute = Recompute::kNone) {
  TinyTrainer trainer(*card.device, config, precision, 40);
  trainer.pass =
      TrainPass::create(*card.device, *trainer.ops, config, trainer.layout, 40, recompute).value();
  const auto other = card.device->allocate(trainer.memory->bytes()).value();
  float* const buffers[] = {trainer.grad(), static_cast<float*>(other->data())};
  std::vector<float> all;
  uint64_t seed = 1;
  for (const Turn& turn : turns) {
    const Microbatch batch = tiny_batch(config, turn.lengths, seed);
    float* const grad = turn.buffer < 0 ? nullptr : buffers[turn.buffer];
    const float scale = static_cast<float>(1 + seed % 3);
    all.push_back(static_cast<float>(trainer.pass->run(*trainer.weights, batch, scale, grad)));
    if (grad != nullptr) {
      const std::vector<float> got = trainer.host_copy(grad);
      all.insert(all.end(), got.begin(), got.end());
    }
    if (++seed % 4 == 0) trainer.load(tiny_weights(trainer.layout, seed));
  }
  const Status status = card.device->sync();
  CHECK_MESSAGE(status.ok(), status.error().message());
  return all;
}

}  // namespace

TEST_CASE("a training pass has the same bits as graphs and without, whatever its microbatches") {
  for (const Architecture architecture : kArchitectures)
    for (const bool even : {false, true}) {
      CAPTURE(std::string(architecture_name(architecture)));
      // Flash attention and plain, and every architecture's own operations.
      if (even && architecture != Architecture::kGpt2 && architecture != Architecture::kQwen3)
        continue;
#if defined(__SANITIZE_THREAD__)  // some thirty times slower, and it sees races in any of them
      if (!even) continue;
#endif
      const ModelConfig config = even ? even_config(architecture) : tiny_config(architecture);
      const Precision precision = even ? Precision::kFloat16 : Precision::kBFloat16;
      Card plain(false), graphs(true);
      const std::vector<float> expected = job(plain, config, precision, kTurns);
      CHECK(job(graphs, config, precision, kTurns) == expected);
      CHECK(plain.started->load() == 0);
      CHECK(graphs.started->load() == kStarted);
      CHECK(graphs.lines == std::vector<std::string>{"training passes are started as graphs"});
      CHECK(graphs.warnings.empty());
    }
}

TEST_CASE(
    "a pass that recomputes its layers has the same bits as graphs, in any order of threads") {
  const ModelConfig config = even_config(Architecture::kQwen3);
  Card plain(false);
  const std::vector<float> expected = job(plain, config, Precision::kBFloat16, kTurns);
  for (const simt::Options& order :
       {simt::Options{}, simt::Options{.order = simt::Order::kShuffled, .seed = 5, .os_threads = 2},
        simt::Options{.order = simt::Order::kReverse, .early_copies = true}}) {
    Card graphs(true, order);
    CHECK(job(graphs, config, Precision::kBFloat16, kTurns, Recompute::kLayer) == expected);
    CHECK(graphs.started->load() > 10);
  }
}

TEST_CASE("microbatches of more lengths than are kept have the same bits, and some come back") {
  std::vector<Turn> turns;
  for (int round = 0; round < 2; ++round) {
    for (int length = 1; length < 14; ++length) turns.push_back({{length, 20 - length}, 0});
    for (int i = 0; i < 4; ++i) turns.push_back({{13, 13}, i % 2});
  }
  const ModelConfig config = tiny_config(Architecture::kLlama);
  Card plain(false), graphs(true);
  CHECK(job(graphs, config, Precision::kBFloat16, turns) ==
        job(plain, config, Precision::kBFloat16, turns));
  CHECK(graphs.started->load() > 0);
}

TEST_CASE("a pass told of other weights in their place does not start the old ones' graphs") {
  const ModelConfig config = tiny_config(Architecture::kGpt2);
  std::vector<std::vector<float>> got;
  for (const bool graphs : {false, true}) {
    Card card(graphs);
    TinyTrainer trainer(*card.device, config, Precision::kBFloat16, 40);
    const Microbatch batch = tiny_batch(config, {9, 4}, 3);
    std::vector<float> all;
    for (const uint64_t seed : {7, 8, 9}) {
      trainer.weights.reset();
      trainer.weights =
          TrainWeights::create(*card.device, *trainer.ops, config, trainer.layout).value();
      trainer.load(tiny_weights(trainer.layout, seed));
      for (int i = 0; i < 3; ++i) {
        const std::vector<float> grad = trainer.gradient(batch);
        all.insert(all.end(), grad.begin(), grad.end());
      }
    }
    CHECK(card.started->load() == (graphs ? 11 : 0));  // scratch memory grows the first time
    CHECK(card.device->sync().ok());
    got.push_back(all);
  }
  CHECK(got[0] == got[1]);
}

TEST_CASE("where no graph can be had passes go on without, in the same bits, and it is said once") {
  const ModelConfig config = tiny_config(Architecture::kLlama);
  Card plain(false), full(true, {.graph_parts = 9});
  CHECK(job(full, config, Precision::kBFloat16, kTurns) ==
        job(plain, config, Precision::kBFloat16, kTurns));
  CHECK(full.started->load() == 0);
  CHECK(full.lines.empty());
  REQUIRE(full.warnings.size() == 1);
  CHECK(full.warnings[0].find("training passes start their kernels one by one") == 0);
  CHECK(full.warnings[0].find("has no room for a graph of") != std::string::npos);
}

TEST_CASE("a card that is lost while passes run as graphs says so from every later pass") {
  const ModelConfig config = tiny_config(Architecture::kLlama);
  for (int64_t launches = 60; launches < 800; launches += 90) {
    Card card(true, {.launches = launches});
    TinyTrainer trainer(*card.device, config, Precision::kBFloat16, 40);
    int failed = 0;
    for (uint64_t i = 0; i < 16; ++i) {
      trainer.pass->run(*trainer.weights, tiny_batch(config, {9, 4}, i), 1, trainer.grad());
      const Status status = card.device->sync();
      if (status.ok()) {
        CHECK(failed == 0);
        continue;
      }
      ++failed;
      CHECK(status.error().code == ErrorCode::kUnavailable);
    }
    CHECK(failed > 0);
    CHECK(card.warnings.empty());
  }
}

TEST_CASE("work that takes memory where it was to be captured is done, and what refused is told") {
  Card card(true);
  uint64_t scratch = 0;
  StepGraphs<int> graphs(
      *card.device, [&] { return scratch; }, 4, "tests");
  const auto memory = card.device->allocate(4096).value();
  float* const x = static_cast<float*>(memory->data());
  const auto ops = card.device->make_train_ops(Precision::kFloat32);
  const float one = 1;
  card.device->copy_in(x, &one, sizeof one);
  std::unique_ptr<DeviceBuffer> taken;
  const auto work = [&] {
    ops->add(x, x, x, 1);
    auto more = card.device->allocate(64);
    if (more.ok()) taken = std::move(*more);
  };
  for (int i = 0; i < 3; ++i) graphs.run(1, work);
  float got = 0;
  card.device->copy_out(&got, x, sizeof got);
  CHECK(got == 8);
  CHECK(card.device->sync().ok());
  CHECK(graphs.started() == 0);
  CHECK(card.lines.empty());
  REQUIRE(card.warnings.size() == 1);
  CHECK(card.warnings[0].find("to allocate memory cannot be part of captured work") !=
        std::string::npos);
}

TEST_CASE("work is captured once scratch memory is what it was when the work was last done") {
  Card card(true);
  uint64_t scratch = 0;
  StepGraphs<int> graphs(
      *card.device, [&] { return scratch; }, 2, "tests");
  int done = 0;
  const auto run = [&](int key) {
    const int before = done;
    const int64_t started = graphs.started();
    graphs.run(key, [&] { ++done; });
    return (done > before ? 1 : 0) + (graphs.started() > started ? 2 : 0);
  };
  constexpr int kDone = 1, kGraph = 2, kCaptured = kDone + kGraph;
  CHECK(run(1) == kDone);
  CHECK(run(1) == kCaptured);
  CHECK(run(1) == kGraph);
  ++scratch;
  CHECK(run(1) == kDone);
  CHECK(run(1) == kCaptured);
  CHECK(run(2) == kDone);
  ++scratch;
  CHECK(run(2) == kDone);  // not captured: it may have work to do that cannot be
  CHECK(run(2) == kCaptured);
  CHECK(run(3) == kDone);  // the first gives way
  CHECK(run(2) == kGraph);
  CHECK(run(1) == kDone);
}

TEST_CASE("tables are copied once, stay while their version does, and are not believed when lost") {
  const auto traffic = std::make_shared<simt::Traffic>();
  const auto runtime = simt::make_emulated_runtime({.own_memory = true, .traffic = traffic});
  gpu::Tables tables(*runtime);
  const auto table = [](int n) { return std::vector<int32_t>(static_cast<size_t>(n), n); };
  const auto get = [&](int n) { return tables.get(std::span<const int32_t>(table(n))); };
  const auto holds = [&](const int32_t* at, int n) {
    std::vector<int32_t> found(static_cast<size_t>(n));
    runtime->copy_out(found.data(), at, found.size() * sizeof(int32_t));
    return found == table(n);
  };
  CHECK(tables.get(std::span<const int32_t>()) == nullptr);
  const int32_t* const five = get(5);
  const uint64_t in = traffic->in;
  CHECK(get(5) == five);
  CHECK(get(5) == five);
  CHECK(traffic->in == in);
  CHECK(holds(five, 5));
  const uint64_t version = tables.version();
  int n = 6;
  for (; tables.version() == version; ++n) {
    REQUIRE(n < 100);
    CHECK(get(5) == five);  // asked for all the time: others give way
    CHECK(holds(get(n), n));
    CHECK(holds(five, 5));
  }
  for (int big = 3000; big < 3100; ++big) CHECK(holds(get(big), big));
  CHECK(holds(get(5), 5));
  // What cannot be copied is not there later either.
  runtime->begin_capture();
  CHECK(get(7777) == nullptr);
  CHECK_FALSE(runtime->end_capture().ok());
  CHECK(holds(get(7777), 7777));
  runtime->report({ErrorCode::kInternal, "has failed", "a test", ""});
  CHECK(get(8888) == nullptr);
  CHECK_FALSE(runtime->sync().ok());
  CHECK(holds(get(8888), 8888));
}

}  // namespace fastserve
