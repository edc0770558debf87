// The products of a training step at the shapes of three models: shakespeare-char (128 wide), 12M
// (384 wide) and GPT-2 124M (768 wide), as fractions of the multiply-add peak that this machine
// reached in the same run.
//
//   kernels_train [lanes] [Google Benchmark's options]
//
// The counters of a line:
//   GFLOP/s   operations done
//   of_peak   as a fraction of the peak: the tile's multiply-adds with no memory behind them, on as
//             many lanes
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "cpu/train/train_kernels.h"
#include "cpu/train/train_ops.h"

namespace fastserve {
namespace {

struct Model {
  const char* name;
  int rows, width;
};
constexpr Model kModels[] = {{"char", 384, 128}, {"12m", 256, 384}, {"gpt2", 256, 768}};

struct Layer {
  const char* name;
  int out, in;  ///< in widths
  MatmulEpilogue forward;
  InputGradEpilogue backward;
};
constexpr Layer kLayers[] = {
    {"qkv", 3, 1, MatmulEpilogue::kStore, InputGradEpilogue::kStoreFloat},
    {"attention_out", 1, 1, MatmulEpilogue::kAddResidual, InputGradEpilogue::kStore},
    {"up", 4, 1, MatmulEpilogue::kGelu, InputGradEpilogue::kStoreFloat},
    {"down", 1, 4, MatmulEpilogue::kAddResidual, InputGradEpilogue::kTimesSlope}};

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Operations a second of all lanes at once, each on a thread of its own: the best of its runs.
double measure_peak(const TrainKernels& kernels, int lanes) {
  std::vector<double> rates(static_cast<size_t>(lanes));
  std::vector<std::thread> threads;
  for (double& rate : rates)
    threads.emplace_back([&rate, &kernels] {
      for (int pass = 0; pass < 200; pass++) {  // long enough for each to find a core
        const double start = seconds_now();
        const double operations = kernels.spin(100'000);
        rate = std::max(rate, operations / (seconds_now() - start));
      }
    });
  for (std::thread& thread : threads) thread.join();
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

/// The three products of one layer and their data.
class LayerBench {
 public:
  LayerBench(TrainOps& ops, const Model& model, const Layer& layer)
      : ops_(ops),
        rows_(model.rows),
        out_(layer.out * model.width),
        in_(layer.in * model.width),
        layer_(layer),
        weight_(ops.make_matrix(out_, in_)),
        x_(area(rows_, in_)),
        y_(area(rows_, out_)),
        narrow_(area(rows_, std::max(out_, in_))),
        slope_(narrow_.size()),
        gradient_(area(out_, in_)) {
    for (size_t i = 0; i < gradient_.size(); i++)
      gradient_[i] = static_cast<float>(i % 101) / 1024 - 0.05f;
    ops.pack(*weight_, 0, out_, gradient_.data());
  }
  double operations() const { return 2.0 * static_cast<double>(area(rows_, out_)) * in_; }

  void forward() {
    ops_.matmul_forward({weight_.get(), x_.data(), rows_, in_, nullptr, layer_.forward, y_.data(),
                         out_, y_.data(), slope_.data()});
  }
  void backward_input() {
    ops_.matmul_backward_input({weight_.get(), y_.data(), rows_, out_, layer_.backward,
                                narrow_.data(), in_, slope_.data(), 1});
  }
  void backward_weight() {
    ops_.matmul_backward_weight(
        {y_.data(), x_.data(), rows_, out_, in_, out_, in_, gradient_.data(), nullptr, false});
  }

 private:
  static size_t area(int rows, int columns) {
    return static_cast<size_t>(rows) * static_cast<size_t>(columns);
  }
  TrainOps& ops_;
  int rows_, out_, in_;
  Layer layer_;
  std::unique_ptr<TrainMatrix> weight_;
  std::vector<float> x_, y_, narrow_, slope_, gradient_;  // zeros; long enough for any precision
};

using Product = void (LayerBench::*)();

void run_layer(benchmark::State& state, TrainOps& ops, const Model& model, const Layer& layer,
               Product product, double peak) {
  LayerBench bench(ops, model, layer);
  (bench.*product)();
  double best = 1e30;
  for (auto _ : state) {
    const double start = seconds_now();
    (bench.*product)();
    best = std::min(best, seconds_now() - start);
  }
  state.counters["GFLOP/s"] = bench.operations() / best * 1e-9;
  state.counters["of_peak"] = bench.operations() / best / peak;
}

int run(int argc, char** argv) {
  int lane_count = 1;
  if (argc > 1 && argv[1][0] != '-') {
    lane_count = std::atoi(argv[1]);
    argv[1] = argv[0];
    argc--;
    argv++;
  }
  if (lane_count < 1 || lane_count > 1024) {
    std::fprintf(stderr, "kernels_train [lanes] [--benchmark_...]: lanes is a number from 1\n");
    return 2;
  }
  const auto isa = choose_isa();
  if (!isa.ok()) {
    std::fprintf(stderr, "%s\n", isa.error().message().c_str());
    return 2;
  }
  LanePool lanes(lane_count);
  std::vector<std::unique_ptr<TrainOps>> all_ops;
  for (Precision precision : {Precision::kBFloat16, Precision::kFloat32}) {
    const double peak = measure_peak(train_kernels(*isa, static_cast<int>(precision)), lane_count);
    std::printf("%s %s, %d lanes: peak %.0f GFLOP/s\n", isa_name(*isa), precision_name(precision),
                lane_count, peak * 1e-9);
    TrainOps& ops = *all_ops.emplace_back(make_cpu_train_ops(*isa, precision, lanes));
    for (const Model& model : kModels)
      for (const Layer& layer : kLayers)
        for (const auto& [name, product] : {std::pair{"/forward", &LayerBench::forward},
                                            {"/dx", &LayerBench::backward_input},
                                            {"/dw", &LayerBench::backward_weight}})
          benchmark::RegisterBenchmark(
              (std::string(precision_name(precision)) + "/" + model.name + "/" + layer.name + name)
                  .c_str(),
              [&ops, &model, &layer, product = product, peak](benchmark::State& state) {
                run_layer(state, ops, model, layer, product, peak);
              })
              ->MinTime(0.05)
              ->UseRealTime();
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace fastserve

int main(int argc, char** argv) { return fastserve::run(argc, argv); }
