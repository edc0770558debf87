// gpu_timings: operations on the first GPU at the shapes that models have, one JSON line each:
//   {"op": "...", "seconds": s, "bytes": b, "flops": f}
// `bytes` is the least that must cross the card's memory, `flops` what must be multiplied and
// added; bench/gpu_report divides them by what the card does at best.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <numeric>
#include <vector>

#include "base/half.h"
#include "base/rng.h"
#include "gpu/loader.h"

namespace {

using namespace fastserve;

struct Bench {
  Device& device;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers;
  Status status;
  Rng rng{1};

  /// `bytes` of zeros; null, and the status says why, when there is no room.
  void* room(size_t bytes) {
    auto made = device.allocate(bytes);
    if (!made.ok()) {
      if (status.ok()) status = made.error();
      return nullptr;
    }
    buffers.push_back(std::move(*made));
    return buffers.back()->data();
  }
  /// Numbers between `low` and 1: zeros would let the card draw less power, and run faster than
  /// models do.
  float* floats(size_t n, float low = -1) { return drawn<float>(n, low); }
  void* halves(size_t n) { return drawn<BFloat16>(n, -1); }

  template <class T>
  const T* given(const std::vector<T>& host) {
    void* const to = room(host.size() * sizeof(T));
    if (to != nullptr) device.copy_in(to, host.data(), host.size() * sizeof(T));
    return static_cast<const T*>(to);
  }
  template <class T>
  T* drawn(size_t n, float low) {
    T* const to = static_cast<T*>(room(n * sizeof(T)));
    std::vector<T> pattern(std::min(n, size_t{1} << 22));
    for (T& x : pattern) {
      const float value = low + (1 - low) * static_cast<float>(rng.uniform());
      if constexpr (std::is_same_v<T, float>)
        x = value;
      else
        x = to_bfloat16(value);
    }
    for (size_t at = 0; to != nullptr && at < n; at += pattern.size())
      device.copy_in(to + at, pattern.data(), std::min(pattern.size(), n - at) * sizeof(T));
    return to;
  }

  /// The median of several rounds, each of enough calls to outlast the start of one.
  double time(const std::string& op, double bytes, double flops,
              const std::function<void()>& call) {
    if (!status.ok()) return 0;
    std::vector<double> rounds;
    for (int round = 0; round < 8 && status.ok(); round++) {
      constexpr int kCalls = 20;
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < kCalls; i++) call();
      status = device.sync();
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      if (round > 0) rounds.push_back(took.count() / kCalls);  // the first one warms up
    }
    if (!status.ok()) return 0;
    std::sort(rounds.begin(), rounds.end());
    return tell(op, rounds[rounds.size() / 2], bytes, flops);
  }
  static double tell(const std::string& op, double seconds, double bytes, double flops) {
    fmt::print("{{\"op\": \"{}\", \"seconds\": {:.4e}, \"bytes\": {:.4e}, \"flops\": {:.4e}}}\n",
               op, seconds, bytes, flops);
    std::fflush(stdout);
    return seconds;
  }
};

constexpr int kRows = 16384;
constexpr int kStepRows = 32768;  // tokens of a microbatch of train-124m-card

void time_products(Bench& bench, TrainOps& ops) {
  for (const auto& [name, out, in] :
       {std::tuple{"gpt2-124m", 3072, 768}, {"llama-1b", 5632, 2048}}) {
    const auto matrix = ops.make_matrix(out, in);
    void* x = bench.halves(size_t{kRows} * size_t(in));
    void* y = bench.halves(size_t{kRows} * size_t(out));
    ops.pack(*matrix, 0, out, bench.floats(size_t(out) * size_t(in)));
    float* gradient = bench.floats(size_t(out) * size_t(in));
    const double flops = 2.0 * kRows * out * in;
    const double bytes = 2.0 * (double(kRows) * (out + in) + double(out) * in);
    bench.time(fmt::format("matmul forward {}", name), bytes, flops, [&] {
      ops.matmul_forward(
          {matrix.get(), x, kRows, in, nullptr, MatmulEpilogue::kStore, y, out, nullptr, nullptr});
    });
    bench.time(fmt::format("matmul backward input {}", name), bytes, flops, [&] {
      ops.matmul_backward_input({matrix.get(), y, kRows, out, InputGradEpilogue::kStore, x, in});
    });
    bench.time(fmt::format("matmul backward weight {}", name), bytes, flops, [&] {
      ops.matmul_backward_weight({y, x, kRows, out, in, out, in, gradient, nullptr, false});
    });
  }
}

/// GPT-2 124M's, as a training step asks for them: with biases, activations and residuals.
void time_layer(Bench& bench, TrainOps& ops) {
  constexpr int kChannels = 768;
  float* const residual = bench.floats(size_t{kStepRows} * kChannels);
  float *const bias = bench.floats(4 * kChannels), *const dbias = bench.floats(4 * kChannels);
  struct Layer {
    const char* name;
    int out, in;
    MatmulEpilogue forward;
    InputGradEpilogue backward;
  };
  for (const Layer& l :
       {Layer{"qkv", 3 * kChannels, kChannels, MatmulEpilogue::kStore, InputGradEpilogue::kStore},
        {"attention out", kChannels, kChannels, MatmulEpilogue::kAddResidual,
         InputGradEpilogue::kStore},
        {"up", 4 * kChannels, kChannels, MatmulEpilogue::kGelu, InputGradEpilogue::kStore},
        {"down", kChannels, 4 * kChannels, MatmulEpilogue::kAddResidual,
         InputGradEpilogue::kTimesSlope}}) {
    const auto matrix = ops.make_matrix(l.out, l.in);
    ops.pack(*matrix, 0, l.out, bench.floats(size_t(l.out) * size_t(l.in)));
    void* const x = bench.halves(size_t{kStepRows} * size_t(l.in));
    void* const dy = bench.halves(size_t{kStepRows} * size_t(l.out));
    void* const slope = bench.halves(size_t{kStepRows} * size_t(std::max(l.in, l.out)));
    void* const to = bench.room(size_t{kStepRows} * size_t(std::max(l.in, l.out)) * sizeof(float));
    const bool adds = l.forward == MatmulEpilogue::kAddResidual;
    const bool gelu = l.forward == MatmulEpilogue::kGelu;
    const double in = double(kStepRows) * l.in, out = double(kStepRows) * l.out;
    const double flops = 2.0 * out * l.in;
    const double to_memory = out * (adds ? 8 : gelu ? 4 : 2);
    bench.time(fmt::format("{} forward", l.name), 2 * in + to_memory, flops, [&] {
      ops.matmul_forward({matrix.get(), x, kStepRows, l.in, bias, l.forward, to, l.out,
                          adds ? residual : nullptr, gelu ? slope : nullptr});
    });
    const bool slopes = l.backward == InputGradEpilogue::kTimesSlope;  // with up's bias gradient
    const double crossing = 2 * out + (slopes ? 4 : 2) * in;
    bench.time(fmt::format("{} backward input", l.name), crossing, flops, [&] {
      ops.matmul_backward_input({matrix.get(), dy, kStepRows, l.out, l.backward, to, l.in,
                                 slopes ? slope : nullptr, 1, slopes ? bias : nullptr,
                                 slopes ? dbias : nullptr});
    });
    float* const gradient = bench.floats(size_t(l.out) * size_t(l.in));
    const bool sums = l.out == 3 * kChannels;  // others' are made by what reads dy anyhow
    bench.time(fmt::format("{} backward weight{}", l.name, sums ? " and bias" : ""),
               2 * in + 2 * out, flops, [&] {
                 ops.matmul_backward_weight({dy, x, kStepRows, l.out, l.in, l.out, l.in, gradient,
                                             sums ? dbias : nullptr, false});
               });
  }
}

void time_embedding(Bench& bench, TrainOps& ops, float* x, int channels) {
  constexpr int kVocab = 50304, kBlock = 1024;
  float* const tokens = bench.floats(size_t{kVocab} * size_t(channels));
  float* const positions = bench.floats(size_t{kBlock} * size_t(channels));
  std::vector<int32_t> ids(kStepRows), places(kStepRows);
  for (int i = 0; i < kStepRows; i++) {
    ids[size_t(i)] = static_cast<int32_t>(bench.rng.below(kVocab));
    places[size_t(i)] = i % kBlock;
  }
  const double bytes = 4.0 * kStepRows * channels;
  bench.time("embed forward", 2 * bytes, 0, [&] {
    ops.embed_forward({ids, places, tokens, positions, x, channels});
  });
  bench.time("embed backward", 4 * bytes, 0, [&] {
    ops.embed_backward({ids, places, x, tokens, positions, channels});
  });
}

void time_rows(Bench& bench, TrainOps& ops) {
  constexpr int kChannels = 768, kVocab = 50304;
  const size_t n = size_t{kStepRows} * kChannels;
  float *x = bench.floats(n), *weight = bench.floats(kChannels),
        *stats = bench.floats(2 * kStepRows);
  void* out = bench.room(n * 2);
  bench.time("layer norm forward", 6.0 * double(n), 0, [&] {
    ops.norm_forward(
        {NormKind::kLayerNorm, x, weight, weight, 1e-5f, kStepRows, kChannels, out, stats});
  });
  float *dx = bench.floats(n), *dweight = bench.floats(kChannels), *dbias = bench.floats(kChannels),
        *dx_sums = bench.floats(kChannels);
  void* const dy = bench.halves(n);
  bench.time("layer norm backward", 16.0 * double(n), 0, [&] {
    ops.norm_backward({NormKind::kLayerNorm, dy, x, weight, stats, kStepRows, kChannels, dx, true,
                       out, dweight, dbias, dx_sums});
  });
  time_embedding(bench, ops, x, kChannels);
  constexpr size_t kParameters = size_t{124} << 20;
  float *p = bench.floats(kParameters), *m = bench.floats(kParameters),
        *v = bench.floats(kParameters, 0), *g = bench.floats(kParameters);
  bench.time("adamw", 28.0 * kParameters, 0, [&] {
    ops.adamw({p, m, v, g, kParameters, 1e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, 1.0f});
  });
  bench.time("add gradients", 12.0 * kParameters, 0, [&] { ops.add(p, g, p, kParameters); });
  constexpr size_t kTile = 64 * kChannels;
  std::vector<FloatRun> tiles;
  for (size_t at = 0; at + kTile <= kParameters; at += kTile) tiles.push_back({g + at, kTile});
  std::vector<double> sums(tiles.size());
  bench.time("squares of tiles", 4.0 * kParameters, 0, [&] { ops.sums_of_squares(tiles, sums); });
  const auto head = ops.make_matrix(kVocab, kChannels);
  ops.pack(*head, 0, kVocab, bench.floats(size_t{kVocab} * kChannels));
  void* dlogits = bench.room(size_t{kStepRows} * kVocab * 2);
  const std::vector<int32_t> targets(kStepRows, 1);
  double* const losses = static_cast<double*>(bench.room(kStepRows * sizeof(double)));
  const double bytes = 4.0 * kStepRows * kVocab, flops = bytes / 2 * kChannels;
  const double product = bench.time("classifier's product", bytes / 2, flops, [&] {
    ops.matmul_forward({head.get(), out, kStepRows, kChannels, nullptr, MatmulEpilogue::kStore,
                        dlogits, kVocab, nullptr, nullptr});
  });
  const double whole = bench.time("classifier loss", bytes, flops, [&] {
    ops.classifier_loss({head.get(), out, kStepRows, targets, losses, dlogits, kVocab, 1.0f});
  });
  Bench::tell("classifier loss less its product", whole - product, bytes, 0);
}

void time_attention(Bench& bench, TrainOps& ops) {
  for (const auto& [name, heads, tokens] :
       {std::tuple{"12 x 64, 1024 tokens", HeadShape{12, 12, 64}, 1024},
        {"32 x 128 of 8, 4096 tokens", HeadShape{32, 8, 128}, 4096},
        {"8 x 256 of 1, 4096 tokens", HeadShape{8, 1, 256}, 4096}}) {
    std::vector<int32_t> starts;
    for (int at = 0; at <= kRows; at += tokens) starts.push_back(at);
    const size_t width = size_t(heads.width()), out_width = size_t(heads.heads * heads.head_dim);
    void *qkv = bench.halves(kRows * width), *dqkv = bench.room(kRows * width * 2);
    void *out = bench.room(kRows * out_width * 2), *dout = bench.halves(kRows * out_width);
    float* stats = bench.floats(size_t(heads.heads) * kRows * 2);
    // Causal: half of the square of scores, two products of it forward and five backward.
    const double square = double(kRows) * tokens * double(out_width);
    // A window as long as the sequences hides nothing, and is not asked of a library.
    for (const auto& [whose, window] : {std::pair{"", 0}, {", own kernels", tokens}}) {
      const AttentionForward forward{heads, qkv, out, stats, starts, window, 0.125f};
      bench.time(fmt::format("attention forward {}{}", name, whose), 0, 2 * square,
                 [&] { ops.attention_forward(forward); });
      bench.time(fmt::format("attention backward {}{}", name, whose), 0, 5 * square, [&] {
        ops.attention_backward({forward, dout, dqkv});
      });
    }
  }
}

/// Weights drawn at random, but for the zeros of 2:4.
Result<std::unique_ptr<DecodeMatrix>> make_weights(DecodeOps& ops, WeightFormat format, int out,
                                                   int in, bool pruned) {
  Rng rng(1);
  QuantisedMatrix quantised;
  std::vector<float> floats;
  const size_t n = size_t(out) * size_t(in);
  DecodeMatrixSource::Part part{{}, nullptr, out};
  if (is_quantised(format)) {
    quantised.format = format;
    quantised.rows = out;
    quantised.cols = in;
    quantised.codes.resize(n);
    for (size_t i = 0; i < n; i++)
      quantised.codes[i] = static_cast<uint8_t>(pruned && i % 2 == 0 ? 0 : rng.below(16));
    quantised.scales.assign(size_t(out) * size_t(quantised.groups()), 1.0f / 1024);
    part.quantised = &quantised;
  } else {
    floats.resize(n);
    for (float& x : floats) x = static_cast<float>(rng.uniform() - 0.5) / 32;
    part.floats = floats;
  }
  return ops.make_matrix({{&part, 1}, in, format, false});
}

/// The products of a 1.1B Llama's MLP, from few rows (bound by the weights' bytes) to a prompt's
/// (bound by tensor cores; of integers half the operations are counted, since twice as many fit a
/// second).
void time_decode_products(Bench& bench, DecodeOps& ops) {
  constexpr int kOut = 11264, kIn = 2048, kMost = 2048;
  constexpr size_t kCold = size_t{256} << 20;  // more than the card's cache holds
  float *x = bench.floats(size_t{kMost} * kIn), *y = bench.floats(size_t{kMost} * kOut);
  for (const auto& [name, format, pruned] : {std::tuple{"bf16", WeightFormat::kBFloat16, false},
                                             {"int8", WeightFormat::kInt8Group128, false},
                                             {"int8 2:4", WeightFormat::kInt8Group128, true},
                                             {"int4-g128", WeightFormat::kInt4Group128, false},
                                             {"int4-g32", WeightFormat::kInt4Group32, false}}) {
    std::vector<std::unique_ptr<DecodeMatrix>> weights;
    for (size_t bytes = 0; bench.status.ok() && bytes < kCold;) {
      auto made = make_weights(ops, format, kOut, kIn, pruned);
      if (!made.ok()) return void(bench.status = made.error());
      bytes += (*made)->bytes();
      weights.push_back(std::move(*made));
    }
    size_t next = 0;
    for (const int rows : {1, 8, 32, 128, kMost}) {
      const double flops = 2.0 * rows * kOut * kIn / (is_quantised(format) ? 2 : 1);
      const double bytes = double(weights[0]->bytes()) + 4.0 * rows * (kIn + kOut);
      bench.time(fmt::format("decode product {}, {} rows", name, rows), bytes, flops, [&] {
        ops.matmul({weights[next].get(),
                    x,
                    rows,
                    kIn,
                    {},
                    nullptr,
                    nullptr,
                    DecodeEpilogue::kStore,
                    y,
                    kOut});
        next = next + 1 == weights.size() ? 0 : next + 1;
      });
    }
  }
}

void time_decode_attention(Bench& bench, DecodeOps& ops) {
  constexpr HeadShape kHeads{32, 8, 128};
  constexpr std::tuple<int, int, int> kCases[] = {{1, 32768, 1}, {64, 4096, 1}, {1, 2048, 2048}};
  for (const KvType type : {KvType::kFloat16, KvType::kInt8})
    for (const auto& [streams, context, rows] : kCases) {
      const int each = context / 16;
      const auto cache = ops.make_cache({.layers = 1,
                                         .kv_heads = kHeads.kv_heads,
                                         .head_dim = kHeads.head_dim,
                                         .blocks = each * streams,
                                         .type = type});
      if (!cache.ok()) return void(bench.status = cache.error());
      std::vector<int32_t> blocks(size_t(each * streams));
      std::iota(blocks.begin(), blocks.end(), 0);
      std::vector<Segment> segments;
      std::vector<RowPlace> places;
      for (int s = 0; s < streams; s++) {
        segments.push_back({s * rows, rows, context - rows,
                            std::span(blocks).subspan(size_t(s * each), size_t(each))});
        for (int t = context - rows; t < context; t++) places.push_back({t, s * each});
      }
      // As in a decoder's step, whose rows are on the card before its first layer.
      const ResidentRows resident{.tokens = nullptr,
                                  .positions = nullptr,
                                  .places = bench.given(places),
                                  .blocks = bench.given(blocks),
                                  .rows = streams * rows,
                                  .reach = context};
      float* qkv = bench.floats(size_t(streams * rows * kHeads.width()));
      float* out = bench.floats(size_t(streams * rows * kHeads.heads * kHeads.head_dim));
      const double bytes =
          2.0 * streams * context * kHeads.kv_heads * double(kv_head_bytes(type, kHeads.head_dim));
      const double pairs = double(rows) * (context - (rows - 1) / 2.0) * streams;
      const std::string what = rows > 1 ? fmt::format("a prompt of {}", rows)
                                        : fmt::format("{} streams at {}", streams, context);
      bench.time(fmt::format("decode attention {}, {}", kv_type_name(type), what), bytes,
                 rows > 1 ? 4.0 * pairs * kHeads.heads * kHeads.head_dim : 0, [&] {
                   ops.attention({.shape = kHeads,
                                  .qkv = qkv,
                                  .segments = segments,
                                  .cache = cache->get(),
                                  .layer = 0,
                                  .rope_table = nullptr,
                                  .q_norm = nullptr,
                                  .k_norm = nullptr,
                                  .epsilon = 0,
                                  .window = 0,
                                  .scale = 0.088f,
                                  .out = out,
                                  .resident = &resident});
                 });
    }
}

Status run() {
  FS_ASSIGN(const GpuLoader loader, GpuLoader::open(GpuSearch::standard()));
  FS_ASSIGN(const int index, loader.first_usable());
  FS_ASSIGN(const auto device, loader.make_device(index, {}));
  const auto ops = device->make_train_ops(Precision::kBFloat16);
  for (const auto& part : {time_products, time_layer, time_rows, time_attention}) {
    Bench bench{*device, {}, {}, Rng{1}};
    part(bench, *ops);
    FS_TRY(bench.status);
  }
  const auto decode = device->make_decode_ops();
  for (const auto& part : {time_decode_products, time_decode_attention}) {
    Bench bench{*device, {}, {}, Rng{1}};
    part(bench, *decode);
    FS_TRY(bench.status);
  }
  return {};
}

}  // namespace

int main() {
  const Status status = run();
  if (status.ok()) return 0;
  fmt::print(stderr, "gpu_timings: {}\n", status.error().message());
  return 1;
}
