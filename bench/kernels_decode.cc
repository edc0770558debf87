// The inference products at the shapes of two Llama-like models (110M and 1.1B): bytes of weights
// read and operations a second, as fractions of what this machine reached in the same run.
//
//   kernels_decode [lanes] [Google Benchmark's options]
//
// The counters of a line:
//   GB/s, GFLOP/s   weights (of attention: keys and values) read and operations done
//   of_read         GB/s as a fraction of the read roof: four streams a lane over 128 MiB
//   of_best         GFLOP/s as a fraction of the fastest kernel of that format on operands in cache
// One or few rows are bound by memory, many by arithmetic: the larger fraction is the one to look
// at.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cpu/decode/decode_ops.h"
#include "cpu/host_memory.h"

namespace fastserve {
namespace {

constexpr size_t kColdBytes = size_t{96}
                              << 20;  // weights are cycled through more than the caches hold

struct Shape {
  const char* name;
  int out, in;
};
constexpr Shape kShapes[] = {{"110m/qkv", 1280, 768},     {"110m/attention_out", 768, 768},
                             {"110m/gate_up", 4096, 768}, {"110m/down", 768, 2048},
                             {"110m/head", 32000, 768},   {"1b/qkv", 2560, 2048},
                             {"1b/gate_up", 11264, 2048}, {"1b/down", 2048, 5632}};
constexpr WeightFormat kFormats[] = {WeightFormat::kInt8Group128, WeightFormat::kInt4Group32,
                                     WeightFormat::kBFloat16};

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::unique_ptr<DecodeMatrix> make_matrix(DecodeOps& ops, int out, int in, WeightFormat format) {
  DecodeMatrixSource::Part part;
  part.rows = out;
  std::vector<float> floats;
  QuantisedMatrix quantised;
  const size_t n = static_cast<size_t>(out) * static_cast<size_t>(in);
  if (is_quantised(format)) {
    quantised.format = format;
    quantised.rows = out;
    quantised.cols = in;
    quantised.codes.resize(n);
    for (size_t i = 0; i < n; i++) quantised.codes[i] = static_cast<uint8_t>(i * 2654435761u >> 28);
    quantised.scales.assign(static_cast<size_t>(out) * static_cast<size_t>(quantised.groups()),
                            1.0f / 1024);
    part.quantised = &quantised;
  } else {
    floats.resize(n);
    for (size_t i = 0; i < n; i++) floats[i] = static_cast<float>(i % 101) / 1024 - 0.05f;
    part.floats = floats;
  }
  DecodeMatrixSource source;
  source.parts = {&part, 1};
  source.in = in;
  source.format = format;
  return ops.make_matrix(source).value();
}

/// One product as a model would call it.
class Product {
 public:
  Product(int out, int in, int rows)
      : rows_(rows),
        x_(static_cast<size_t>(rows) * static_cast<size_t>(in)),
        out_(static_cast<size_t>(rows) * static_cast<size_t>(out)) {
    for (size_t i = 0; i < x_.size(); i++) x_[i] = static_cast<float>(i % 97) / 48 - 1;
  }
  void run(DecodeOps& ops, const DecodeMatrix& weight) {
    DecodeMatmul op{};
    op.weight = &weight;
    op.x = x_.data();
    op.rows = rows_;
    op.x_ld = weight.in();
    op.out = out_.data();
    op.out_ld = weight.out();
    ops.matmul(op);
    benchmark::DoNotOptimize(out_.data());
  }

 private:
  int rows_;
  std::vector<float> x_, out_;
};

/// Best of several passes over 128 MiB, each lane reading four streams of its part. GB/s.
double read_roof(LanePool& lanes) {
  constexpr size_t kBytes = size_t{128} << 20;
  HostMemory memory = HostMemory::allocate(kBytes, "the read test").value();
  std::memset(memory.data(), 1, kBytes);
  const auto parts = static_cast<size_t>(lanes.lanes()) * 4;
  const size_t words = kBytes / sizeof(uint64_t) / parts / 32 * 32, stream = words / 4;
  double best = 0;
  for (int pass = 0; pass < 8; pass++) {
    const double start = seconds_now();
    lanes.run(static_cast<int64_t>(parts), [&](int64_t part, int) {
      const auto* p =
          reinterpret_cast<const uint64_t*>(memory.data()) + static_cast<size_t>(part) * words;
      uint64_t sum[8] = {};
      for (size_t i = 0; i < stream; i += 8)
        for (size_t s = 0; s < 4; s++)
          for (size_t j = 0; j < 8; j++) sum[j] ^= p[s * stream + i + j];
      for (uint64_t& x : sum) benchmark::DoNotOptimize(x);
    });
    best = std::max(best, static_cast<double>(words * parts * sizeof(uint64_t)) * 1e-9 /
                              (seconds_now() - start));
  }
  return best;
}

/// The fastest that this format's product runs here, weights and rows in cache. GFLOP/s.
double best_rate(DecodeOps& ops, WeightFormat format) {
  const int out = 512, in = 768, rows = 256;
  const auto weight = make_matrix(ops, out, in, format);
  Product product(out, in, rows);
  double best = 0;
  for (int pass = 0; pass < 100; pass++) {
    const double start = seconds_now();
    product.run(ops, *weight);
    best = std::max(best, 2e-9 * out * in * rows / (seconds_now() - start));
  }
  return best;
}

void run_product(benchmark::State& state, DecodeOps& ops, const Shape& shape, WeightFormat format,
                 int rows, double roof, double rate) {
  std::vector<std::unique_ptr<DecodeMatrix>> weights;
  do weights.push_back(make_matrix(ops, shape.out, shape.in, format));
  while (rows < 64 && weights.size() * weights[0]->bytes() < kColdBytes);
  Product product(shape.out, shape.in, rows);
  size_t next = 0;
  const double start = seconds_now();
  for (auto _ : state) {
    product.run(ops, *weights[next]);
    next = next + 1 == weights.size() ? 0 : next + 1;
  }
  const double each = (seconds_now() - start) / static_cast<double>(state.iterations());
  const double bytes = static_cast<double>(weights[0]->bytes()) * 1e-9 / each;
  const double operations = 2e-9 * shape.out * shape.in * rows / each;
  state.counters["GB/s"] = bytes;
  state.counters["GFLOP/s"] = operations;
  state.counters["of_read"] = bytes / roof;
  state.counters["of_best"] = operations / rate;
}

/// One decoding step of `streams` sequences at position `context`: keys and values read, GB/s.
void run_attention(benchmark::State& state, DecodeOps& ops, KvType type, int streams, int context,
                   double roof) {
  constexpr HeadShape kHeads{16, 4, 128};
  constexpr int kBlockTokens = 16;
  const int blocks_each = context / kBlockTokens + 1;
  KvShape shape{1, kHeads.kv_heads, kHeads.head_dim, kBlockTokens, blocks_each * streams, type};
  const size_t read = 2 * static_cast<size_t>(streams) * static_cast<size_t>(context) *
                      static_cast<size_t>(shape.kv_heads) * kv_head_bytes(type, shape.head_dim);
  while (static_cast<size_t>(shape.layers) * read < kColdBytes) shape.layers++;
  const auto cache = ops.make_cache(shape).value();
  std::vector<int32_t> blocks(static_cast<size_t>(shape.blocks));
  for (size_t i = 0; i < blocks.size(); i++) blocks[i] = static_cast<int32_t>(i);
  std::vector<Segment> segments;
  for (int s = 0; s < streams; s++)
    segments.push_back({s, 1, context - 1,
                        std::span(blocks).subspan(static_cast<size_t>(s * blocks_each),
                                                  static_cast<size_t>(blocks_each))});
  std::vector<float> qkv(static_cast<size_t>(streams * kHeads.width())), out(qkv.size());
  DecodeAttention op{};
  op.shape = kHeads;
  op.segments = segments;
  op.cache = cache.get();
  op.scale = 0.088f;
  op.qkv = qkv.data();
  op.out = out.data();
  const double start = seconds_now();
  for (auto _ : state) {
    for (size_t i = 0; i < qkv.size(); i++) qkv[i] = static_cast<float>(i % 97) / 48 - 1;
    ops.attention(op);
    op.layer = op.layer + 1 == shape.layers ? 0 : op.layer + 1;
  }
  const double each = (seconds_now() - start) / static_cast<double>(state.iterations());
  state.counters["GB/s"] = static_cast<double>(read) * 1e-9 / each;
  state.counters["of_read"] = static_cast<double>(read) * 1e-9 / each / roof;
}

int run(int lanes_wanted, Isa isa) {
  LanePool lanes(lanes_wanted);
  const auto ops = make_cpu_decode_ops(isa, lanes);
  const double roof = read_roof(lanes);
  std::printf("%s, %d lanes, read roof %.1f GB/s\n", isa_name(isa), lanes_wanted, roof);
  for (KvType type : {KvType::kFloat16, KvType::kInt8})
    for (const auto& [streams, context] : {std::pair{1, 4096}, {32, 512}}) {
      const std::string name = std::string("attention/") + kv_type_name(type) +
                               "/streams:" + std::to_string(streams) +
                               "/context:" + std::to_string(context);
      benchmark::RegisterBenchmark(
          name.c_str(),
          [&, type, streams = streams, context = context](benchmark::State& s) {
            run_attention(s, *ops, type, streams, context, roof);
          })
          ->Unit(benchmark::kMicrosecond)
          ->UseRealTime();
    }
  for (WeightFormat format : kFormats) {
    const double rate = best_rate(*ops, format);
    std::printf("%s in cache: %.0f GFLOP/s\n", weight_format_name(format), rate);
    for (const Shape& shape : kShapes)
      for (int rows : {1, 8, 32, 512}) {
        const std::string name = std::string(weight_format_name(format)) + "/" + shape.name +
                                 "/rows:" + std::to_string(rows);
        benchmark::RegisterBenchmark(name.c_str(),
                                     [&, format, rows, rate](benchmark::State& s) {
                                       run_product(s, *ops, shape, format, rows, roof, rate);
                                     })
            ->Unit(benchmark::kMicrosecond)
            ->UseRealTime();
      }
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace fastserve

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const auto isa = fastserve::choose_isa();
  if (!isa.ok()) {
    std::fprintf(stderr, "%s\n", isa.error().message().c_str());
    return 1;
  }
  const int lanes = argc > 1 ? std::atoi(argv[1]) : 2;
  if (lanes < 1 || lanes > 1024 || argc > 2) {
    std::fprintf(stderr, "usage: kernels_decode [lanes, 1 to 1024] [--benchmark_filter=...]\n");
    return 1;
  }
  return fastserve::run(lanes, *isa);
}
