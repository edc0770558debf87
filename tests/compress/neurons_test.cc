#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "compress/measure.h"
#include "cpu/cpu_device.h"
#include "model/trainable.h"
#include "tests/compress/small_models.h"

using namespace fastserve;

namespace {

double perplexity(const FlatModel& model) {
  const auto device = make_reference_device();
  MeasureOptions options;
  options.weights = WeightFormat::kFloat32;
  options.kv = KvType::kFloat32;
  options.speed_tokens = options.speed_rounds = 1;
  options.speed_seconds = 0;
  const auto measured =
      measure_model(*device, SystemClock(), bundle_of(model), some_tokens(2, 24), options);
  if (!measured.ok()) FAIL(measured.error().message());
  return measured->perplexity;
}

/// The final norm's output over some text.
std::vector<float> last_hidden(const FlatModel& model) {
  const auto device = make_reference_device();
  const ParameterLayout layout(model.config);
  const auto ops = device->make_train_ops(Precision::kFloat32);
  const auto weights = TrainWeights::create(*device, *ops, model.config, layout);
  const auto pass = TrainPass::create(*device, *ops, model.config, layout, 30);
  REQUIRE((weights.ok() && pass.ok()));
  std::copy(model.flat.begin(), model.flat.end(), (*weights)->masters().begin());
  (*weights)->refresh_all(*ops);
  (*pass)->run(**weights, {some_tokens(1, 30)[0], std::vector<int32_t>(30, -1), {0, 30}}, 1.0f,
               nullptr);
  return (*pass)->hidden(model.config.layers);
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); i++)
    sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  return std::sqrt(sum);
}

ChannelNorms norms_of(const FlatModel& model) {
  const auto device = make_reference_device();
  auto norms = calibrate(*device, bundle_of(model), some_tokens(3, 20, 8));
  if (!norms.ok()) FAIL(norms.error().message());
  return *norms;
}

}  // namespace

TEST_CASE("kept widths are multiples of 64, or of 16 in narrow layers, and always fewer") {
  CHECK(kept_neurons(3072, 0.25) == 2304);
  CHECK(kept_neurons(3072, 0.01) == 3008);
  CHECK(kept_neurons(11008, 0.5) == 5504);
  CHECK(kept_neurons(176, 0.25) == 128);
  CHECK(kept_neurons(96, 0.99) == 16);
  CHECK(kept_neurons(16, 0.5) == 16);
  CHECK(kept_neurons(5, 0.5) == 5);
}

TEST_CASE("removing neurons that add nothing changes no perplexity, and really shrinks the model") {
  for (const Architecture architecture : {Architecture::kGpt2, Architecture::kLlama}) {
    CAPTURE(architecture_name(architecture));
    FlatModel model = small_model(architecture, false);
    const ParameterLayout layout(model.config);
    for (int l = 0; l < 2; l++) {  // every third neuron of layer 0, every third but one of layer 1
      const Block& down = layout.layer(l).down;
      for (int r = 0; r < down.rows; r++)
        for (int c = l; c < down.cols; c += 3)
          model.flat[down.offset + static_cast<size_t>(r * down.cols + c)] = 0;
    }
    const double before = perplexity(model);
    const auto slim = remove_neurons(model, norms_of(model), 1.0 / 3);
    if (!slim.ok()) FAIL(slim.error().message());
    CHECK(slim->config.intermediate_size == 64);
    CHECK(slim->config.intermediate_sizes.empty());
    CHECK(slim->flat.size() < model.flat.size());
    CHECK(perplexity(*slim) == doctest::Approx(before).epsilon(1e-6));
  }
}

TEST_CASE(
    "the neurons that go are those whose loss hurts least, though no weight of theirs says so") {
  FlatModel model = small_model(Architecture::kLlama, false);
  const ParameterLayout layout(model.config);
  for (int l = 0; l < 2; l++) {  // every other neuron is quiet, but its column of `down` is not
    float* up = model.flat.data() + layout.layer(l).up.offset + 96 * 32;
    for (int neuron = 0; neuron < 96; neuron += 2)
      for (int i = 0; i < 32; i++) up[neuron * 32 + i] *= 0.1f;
  }
  const ChannelNorms norms = norms_of(model);
  const auto importance = importance_in(model, norms, 0);
  REQUIRE(importance.ok());
  const auto slim = remove_neurons(model, norms, 0.5);
  REQUIRE(slim.ok());
  // Against removing the most important half: reverse the importance by observing its inverse.
  ChannelNorms reversed;
  for (int l = 0; l < 2; l++) {
    const auto values = *importance_in(model, norms, l);
    std::vector<float> inverse;
    for (const double v : values) inverse.push_back(static_cast<float>(1 / (v * v * v)));
    reversed.observe("model.layers." + std::to_string(l) + ".mlp.down_proj.weight", inverse.data(),
                     1, 96);
  }
  const auto worst = remove_neurons(model, reversed, 0.5);
  REQUIRE(worst.ok());
  const std::vector<float> whole = last_hidden(model);
  CHECK(distance(last_hidden(*slim), whole) < 0.3 * distance(last_hidden(*worst), whole));
}

TEST_CASE("importance is the norm of all that a neuron added") {
  const FlatModel model = small_model(Architecture::kGpt2, true);
  const ParameterLayout layout(model.config);
  ChannelNorms norms;
  std::vector<float> h(96, 0.0f);
  h[5] = 3;
  norms.observe("transformer.h.1.mlp.c_proj.weight", h.data(), 1, 96);
  const auto importance = importance_in(model, norms, 1);
  REQUIRE(importance.ok());
  double column = 0;
  const Block& down = layout.layer(1).down;
  for (int r = 0; r < 32; r++)
    column +=
        std::pow(static_cast<double>(model.flat[down.offset + static_cast<size_t>(r * 96 + 5)]), 2);
  CHECK((*importance)[5] == doctest::Approx(3 * std::sqrt(column)).epsilon(1e-12));
  CHECK((*importance)[6] == 0.0);
  CHECK(importance_in(model, norms, 0).error().where == "transformer.h.0.mlp.c_proj.weight");
}
