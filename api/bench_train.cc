#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "actors/training_system.h"
#include "api/bench_models.h"
#include "api/device_choice.h"
#include "base/rng.h"
#include "cpu/cpu_device.h"
#include "model/parameters.h"
#include "train/plan.h"

namespace fastserve {
namespace {

TrainSpec spec_of(const TrainShape& s) {
  TrainSpec spec;
  ModelConfig& m = spec.model;
  m.layers = s.layers;
  m.heads = m.kv_heads = s.heads;
  m.hidden_size = s.hidden;
  m.head_dim = s.hidden / s.heads;
  m.intermediate_size = 4 * s.hidden;
  m.max_positions = s.block;
  m.vocab_size = s.vocab;
  if (s.kv_heads > 0) {
    m.rope = Rope{};
    m.kv_heads = s.kv_heads;
    m.intermediate_size = s.neurons;
  } else {
    m.architecture = Architecture::kGpt2;
    m.norm = NormKind::kLayerNorm;
    m.mlp = MlpKind::kGeluTanh;
    m.qkv_bias = m.output_bias = m.mlp_bias = true;
    m.tied_embeddings = true;
  }
  spec.block = s.block;
  spec.batch = s.batch;
  spec.steps = 1'000'000;  // ended by the clock
  spec.evaluate_every = 0;
  spec.checkpoint_every = 0;
  spec.validation_fraction = 0;
  return spec;
}

/// Drawn once and repeated: a billion normal numbers would take longer than what is measured.
std::vector<float> initial_weights(const ModelConfig& model) {
  constexpr size_t kDrawn = 1'048'583;  // a prime: rows begin anywhere in it
  Rng rng(2);
  std::vector<float> drawn(kDrawn);
  for (float& x : drawn) x = 0.02f * static_cast<float>(rng.normal());
  const ParameterLayout layout(model);
  std::vector<float> weights(layout.elements());
  size_t next = 0;
  for (const Parameter& p : layout.parameters()) {
    const bool ones = !p.decay && p.name.ends_with("weight");
    for (size_t i = 0; i < p.size(); i++)
      weights[p.offset + i] = p.decay ? drawn[next++ % kDrawn] : ones ? 1.0f : 0.0f;
  }
  return weights;
}

std::shared_ptr<const Dataset> random_dataset(const TrainShape& s) {
  auto dataset = std::make_shared<Dataset>();
  Rng rng(1);
  std::vector<int32_t> ids(static_cast<size_t>(s.batch) * static_cast<size_t>(s.block) * 64 + 1);
  for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(static_cast<uint64_t>(s.vocab)));
  dataset->train.append(ids);
  dataset->vocab_size = s.vocab;
  return dataset;
}

/// GFLOP/s of the training matmul on one hot shape, all lanes at once.
double gemm_peak(const BenchContext& context) {
  constexpr int kRows = 384, kOut = 512, kIn = 768;
  std::vector<double> rates(static_cast<size_t>(context.lanes), 0.0);
  std::vector<std::thread> threads;
  for (double& rate : rates)
    threads.emplace_back([&rate, &context] {
      auto device = make_cpu_device({1, context.isa});
      if (!device.ok()) return;
      const auto ops = (*device)->make_train_ops(Precision::kBFloat16);
      const auto matrix = ops->make_matrix(kOut, kIn);
      const std::vector<float> masters(static_cast<size_t>(kOut) * kIn, 0.01f);
      ops->pack(*matrix, 0, kOut, masters.data());
      std::vector<uint16_t> x(static_cast<size_t>(kRows) * kIn + 64),
          out(static_cast<size_t>(kRows) * kOut + 64);
      const SystemClock clock;
      double best = 0;
      for (int i = 0; i < 200; i++) {
        const Nanoseconds start = clock.now();
        ops->matmul_forward({matrix.get(), x.data(), kRows, kIn, nullptr, MatmulEpilogue::kStore,
                             out.data(), kOut, nullptr, nullptr});
        best = std::max(
            best, 2.0 * kRows * kOut * kIn / static_cast<double>((clock.now() - start).count()));
      }
      rate = best;
    });
  double sum = 0;
  for (size_t i = 0; i < threads.size(); i++) threads[i].join(), sum += rates[i];
  return sum;
}

}  // namespace

void summarise(std::span<const double> rates, BenchResult& result) {
  if (rates.empty()) return;
  std::vector<double> sorted(rates.begin(), rates.end());
  std::sort(sorted.begin(), sorted.end());
  result.value = sorted[sorted.size() / 2];
  result.low = sorted[sorted.size() / 10];
  result.high = sorted[sorted.size() * 9 / 10];
}

namespace {

struct TimedJob {
  std::vector<double> rates;  ///< tokens/s of each step after the first few
  TrainSpec spec;
  std::string description;
  TrainOutcome outcome;
};

/// Steps of a job for about context.seconds.
Result<TimedJob> time_job(const BenchContext& context, const TrainShape& shape, GraphUse graphs) {
  CancelFlag stop;
  const SystemClock clock;
  std::vector<Nanoseconds> ends;
  Nanoseconds warm{0};
  TrainingSystem::Config config;
  config.spec = spec_of(shape);
  config.placement.lanes = context.lanes;
  config.dataset = random_dataset(shape);
  config.initial_weights = initial_weights(config.spec.model);
  config.make_device = with_graph_use(context.device.make, std::move(graphs));
  config.make_host = context.device.make_host;
  config.cancel = &stop;
  config.progress = [&](const TrainProgress& p) {
    constexpr int64_t kWarmUp = 3;
    const Nanoseconds now = clock.now();
    if (p.step == kWarmUp) warm = now;
    if (p.step >= kWarmUp) ends.push_back(now);
    const bool enough =
        p.step > kWarmUp + 4 && std::chrono::duration<double>(now - warm).count() > context.seconds;
    if (enough || context.cancel.raised()) stop.raise();
  };
  FS_ASSIGN(const auto system, TrainingSystem::start(std::move(config)));
  TimedJob timed;
  timed.spec = system->spec();
  timed.description = system->description();
  FS_ASSIGN(timed.outcome, system->wait());
  if (context.cancel.raised()) return Error{ErrorCode::kCancelled, "stopped", "bench", ""};
  const double tokens = static_cast<double>(shape.batch) * shape.block;
  for (size_t i = 1; i < ends.size(); i++)
    timed.rates.push_back(tokens / std::chrono::duration<double>(ends[i] - ends[i - 1]).count());
  return timed;
}

}  // namespace

Result<BenchResult> bench_training(const BenchContext& context, const TrainShape& shape) {
  const double peak = context.device.own_memory() ? 0 : gemm_peak(context);  // of the CPU's cores
  const auto graphs = std::make_shared<std::atomic<int64_t>>(0);
  FS_ASSIGN(const TimedJob timed, time_job(context, shape, {.wanted = true, .started = graphs}));
  BenchResult result;
  result.unit = "tokens/s";
  summarise(timed.rates, result);
  const double parameters = static_cast<double>(count_parameters(timed.spec.model));
  // PaLM's count (Chowdhery et al. 2022): 6 N + 12 layers hidden block; attention in full.
  const double flops = 6 * parameters + 12.0 * shape.layers * shape.hidden * shape.block;
  result.detail = Json::object(
      {{"plan", timed.description},
       {"precision", precision_name(timed.spec.precision)},
       {"parameters", parameters},
       {"steps", timed.rates.size() + 1},
       {"gflops", flops * result.value * 1e-9},
       {"gemm_peak_gflops", peak},
       {"fraction_of_gemm_peak", peak > 0 ? Json(flops * result.value * 1e-9 / peak) : Json()},
       {"peak_bytes", timed.outcome.peak_memory_bytes},
       {"expected_bytes", timed.outcome.planned_memory_bytes},
       {"graphs_started", graphs->load()}});
  if (*graphs == 0) return result;
  // What graphs are worth: the same steps without.
  FS_ASSIGN(const TimedJob without, time_job(context, shape, {.wanted = false}));
  BenchResult plain;
  summarise(without.rates, plain);
  result.detail.set("without_graphs", plain.value);
  return result;
}

}  // namespace fastserve
