// Whole steps of a transformer on the emulated GPU, beside the reference.
#include <numeric>

#include "model/decoder.h"
#include "tests/gpu/even_config.h"
#include "tests/gpu/gpu_tests.h"

namespace fastserve::harness {
namespace {

/// As whole models meet it: operands lie in its own memory, and kernels are refused the host's.
std::unique_ptr<Device> whole_gpu(simt::Options options = {}) {
  options.own_memory = true;
  return emulated_gpu(options);
}

double norm(std::span<const float> x) {
  double sum = 0;
  for (float v : x) sum += double(v) * v;
  return std::sqrt(sum);
}
double distance(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
  return std::sqrt(sum);
}

struct Trained {
  double before, after;  ///< losses around one step of AdamW
  std::vector<float> grad, masters;
};

Trained train_one_step(Device& device, const ModelConfig& config, Precision precision,
                       const Microbatch& batch) {
  TinyTrainer trainer(device, config, precision, 96);
  Trained t;
  t.grad = trainer.gradient(batch);
  t.before = trainer.loss;
  const size_t elements = trainer.layout.elements();
  const auto moments = device.allocate(2 * elements * sizeof(float)).value();
  float* const m = static_cast<float*>(moments->data());
  for (const TrainWeights::Tile& tile : trainer.weights->tiles()) {
    trainer.ops->adamw({trainer.weights->masters().data() + tile.offset, m + tile.offset,
                        m + elements + tile.offset, trainer.grad() + tile.offset, tile.size, 1e-3f,
                        0.9f, 0.95f, 1e-8f, tile.decay ? 0.1f : 0.0f, 1, 1.0f});
    trainer.weights->refresh(tile, *trainer.ops);
  }
  t.after = trainer.pass->run(*trainer.weights, batch, 1, nullptr);
  t.masters = trainer.host_copy(trainer.weights->masters().data());
  const Status status = device.sync();
  CHECK_MESSAGE(status.ok(), status.error().message());
  return t;
}

/// Holds the GPU against the reference in float. In fp32 only the order of sums differs; below, the
/// yardstick is what the reference itself loses by computing in that precision.
void require_agreement(const ModelConfig& config, Precision precision, const Microbatch& batch,
                       const Trained& got) {
  const auto reference = make_reference_device();
  const Trained truth = train_one_step(*reference, config, Precision::kFloat32, batch);
  const Trained rounded = train_one_step(*reference, config, precision, batch);
  constexpr double kOrder = 0x1p-18;  // what the op harness allows sums of 64 floats
  const double unit = std::max(unit_roundoff(precision) / 2, kOrder);
  CHECK(std::abs(got.before - truth.before) <= unit * truth.before);
  CHECK(std::abs(got.after - truth.after) <= unit * truth.after);
  CHECK(distance(truth.grad, got.grad) <=
        1.25 * distance(truth.grad, rounded.grad) + kOrder * norm(truth.grad));
  CHECK(got.after < got.before);
}

}  // namespace

TEST_CASE("a training step on the GPU is the reference's, in every architecture") {
  const auto device = whole_gpu();
  for (const Architecture architecture : kArchitectures)
    for (const Precision precision : kGpuPrecisions) {
      CAPTURE(architecture_name(architecture));
      CAPTURE(precision_name(precision));
      const ModelConfig config = tiny_config(architecture);
      const Microbatch batch = tiny_batch(config, {17, 1, 9}, 5);
      require_agreement(config, precision, batch,
                        train_one_step(*device, config, precision, batch));
    }
}

TEST_CASE("a training step through flash attention is the reference's, and keeps its bits") {
  const auto device = whole_gpu();
  for (const Architecture architecture : {Architecture::kGpt2, Architecture::kMistral}) {
    CAPTURE(architecture_name(architecture));
    const ModelConfig config = even_config(architecture);
    const Microbatch batch = tiny_batch(config, {70, 9}, 6);
    const Trained got = train_one_step(*device, config, Precision::kBFloat16, batch);
    require_agreement(config, Precision::kBFloat16, batch, got);
    const auto other = whole_gpu(unlike_orders().front());
    const Trained again = train_one_step(*other, config, Precision::kBFloat16, batch);
    CHECK(again.grad == got.grad);
    CHECK(again.masters == got.masters);
    CHECK(again.after == got.after);
  }
}

TEST_CASE("a model answers on the GPU as on the reference, whatever its weights are held in") {
  const auto reference = make_reference_device(), device = whole_gpu();
  const ModelConfig config = even_config(Architecture::kQwen3);
  const ParameterLayout layout(config);
  const ModelBundle bundle = tiny_bundle(config, layout, tiny_weights(layout, 7));
  std::vector<int32_t> tokens(23), blocks = {3, 1};
  Rng rng(8);
  for (int32_t& t : tokens)
    t = static_cast<int32_t>(rng.below(static_cast<uint64_t>(config.vocab_size)));
  const auto logits = [&](Device& on, WeightFormat format, KvType kv) {
    DecoderOptions options;
    options.weights = format;
    options.kv = kv;
    options.kv_blocks = 4;
    options.max_rows = 32;
    auto decoder = Decoder::load(on, bundle, options);
    REQUIRE(decoder.ok());
    std::vector<float> all;
    for (const auto& [from, rows] : {std::pair{0, 19}, {19, 3}, {22, 1}}) {
      const Segment segment{0, rows, from, blocks};
      std::vector<int32_t> wanted(static_cast<size_t>(rows));
      std::iota(wanted.begin(), wanted.end(), 0);
      const auto step = (*decoder)->step(
          std::span(tokens).subspan(static_cast<size_t>(from), static_cast<size_t>(rows)),
          {&segment, 1}, wanted);
      REQUIRE(step.ok());
      all.insert(all.end(), step->begin(), step->end());
    }
    CHECK(on.sync().ok());
    return all;
  };
  for (const auto& [format, unit] : {std::pair{WeightFormat::kFloat32, 0x1p-18},
                                     {WeightFormat::kFloat16, 0x1p-18},
                                     {WeightFormat::kBFloat16, 0x1p-8}}) {
    CAPTURE(weight_format_name(format));
    const std::vector<float> truth = logits(*reference, format, KvType::kFloat32);
    CHECK(distance(truth, logits(*device, format, KvType::kFloat32)) <= 2 * unit * norm(truth));
  }
}

}  // namespace fastserve::harness
