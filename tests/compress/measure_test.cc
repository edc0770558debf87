#include "compress/measure.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "cpu/cpu_device.h"
#include "model/trainable.h"
#include "tests/compress/small_models.h"

using namespace fastserve;

namespace {

/// Each look moves it on by a millisecond.
class TickingClock final : public Clock {
 public:
  Nanoseconds now() const override { return time_ += std::chrono::milliseconds(1); }
  int64_t unix_seconds() const override { return 0; }

 private:
  mutable Nanoseconds time_{0};
};

}  // namespace

TEST_CASE("perplexity is that of the training pass over the same text") {
  const auto device = make_reference_device();
  const FlatModel model = small_model(Architecture::kLlama, false);
  const auto text = some_tokens(3, 30);
  MeasureOptions options;
  options.weights = WeightFormat::kFloat32;
  options.kv = KvType::kFloat32;
  options.speed_tokens = 8;
  const auto measured = measure_model(*device, TickingClock(), bundle_of(model), text, options);
  if (!measured.ok()) FAIL(measured.error().message());

  const ParameterLayout layout(model.config);
  const auto ops = device->make_train_ops(Precision::kFloat32);
  const auto weights = TrainWeights::create(*device, *ops, model.config, layout);
  REQUIRE(weights.ok());
  std::copy(model.flat.begin(), model.flat.end(), (*weights)->masters().begin());
  (*weights)->refresh_all(*ops);
  const auto pass = TrainPass::create(*device, *ops, model.config, layout, 30);
  REQUIRE(pass.ok());
  double loss = 0;
  for (const auto& sequence : text) {
    Microbatch batch{sequence, {sequence.begin() + 1, sequence.end()}, {0, 30}};
    batch.targets.push_back(-1);
    loss += (*pass)->run(**weights, batch, 1.0f, nullptr);
  }
  CHECK(measured->perplexity == doctest::Approx(std::exp(loss / (3 * 29))).epsilon(1e-5));
  CHECK(measured->bytes == layout.trainable() * 4);
  CHECK(measured->tokens_per_second == doctest::Approx(8000));  // 8 tokens in one tick
}

TEST_CASE("a model whose rounds are short is timed over more of them") {
  const auto device = make_reference_device();
  MeasureOptions options;
  options.speed_tokens = options.speed_rounds = 1;
  for (const double seconds : {0.0, 0.05}) {
    options.speed_seconds = seconds;
    const TickingClock clock;  // a round takes a millisecond by it
    REQUIRE(measure_model(*device, clock, bundle_of(small_model(Architecture::kLlama, false)),
                          some_tokens(1, 9), options)
                .ok());
    CHECK(clock.now() >= std::chrono::milliseconds(seconds > 0 ? 100 : 4));
    CHECK(clock.now() <= std::chrono::milliseconds(seconds > 0 ? 110 : 10));
  }
}

TEST_CASE("text shorter than two tokens is refused, and a raised flag stops the measurement") {
  const auto device = make_reference_device();
  const ModelBundle bundle = bundle_of(small_model(Architecture::kGpt2, true));
  CHECK(measure_model(*device, TickingClock(), bundle, some_tokens(4, 1)).error().code ==
        ErrorCode::kInvalidArgument);
  CancelFlag cancel;
  cancel.raise();
  CHECK(
      measure_model(*device, TickingClock(), bundle, some_tokens(1, 9), {}, &cancel).error().code ==
      ErrorCode::kCancelled);
  CHECK(calibrate(*device, bundle, some_tokens(1, 9), &cancel).error().code ==
        ErrorCode::kCancelled);
  CHECK(calibrate(*device, bundle, some_tokens(2, 0)).error().code == ErrorCode::kInvalidArgument);
}

TEST_CASE("calibration sees the input of every projection, once for each token of the text") {
  const auto device = make_reference_device();
  for (const Architecture architecture : {Architecture::kGpt2, Architecture::kLlama}) {
    const FlatModel model = small_model(architecture, true);
    const auto norms =
        calibrate(*device, bundle_of(model), some_tokens(2, 60));  // cut to the context of 40
    if (!norms.ok()) FAIL(norms.error().message());
    CHECK(norms->tokens() == 80);
    const ParameterLayout layout(model.config);
    for (const Parameter& p : layout.parameters()) {
      const bool table = p.name.ends_with("wte.weight") || p.name.ends_with("wpe.weight") ||
                         p.name.ends_with("embed_tokens.weight");
      if (!p.decay || table) continue;
      CAPTURE(p.name);
      const std::vector<double> channels = norms->norms(p.name);
      REQUIRE(channels.size() == static_cast<size_t>(p.cols));
      CHECK(*std::min_element(channels.begin(), channels.end()) > 0);
    }
  }
}
