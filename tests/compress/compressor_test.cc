#include "compress/compressor.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "compress/measure.h"
#include "cpu/cpu_device.h"
#include "tests/compress/small_models.h"

using namespace fastserve;

namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kFloat32,     WeightFormat::kBFloat16,
                                     WeightFormat::kFloat16,     WeightFormat::kInt8Row,
                                     WeightFormat::kInt8Group32, WeightFormat::kInt8Group128,
                                     WeightFormat::kInt4Group32, WeightFormat::kInt4Group128};

/// Hooks that measure and calibrate for real, on the reference device.
CompressorHooks real_hooks() {
  CompressorHooks hooks;
  hooks.measure = [](const ModelBundle& bundle) {
    const auto device = make_reference_device();
    MeasureOptions options;
    options.weights = WeightFormat::kFloat32;
    options.speed_tokens = options.speed_rounds = 1;
    options.speed_seconds = 0;
    return measure_model(*device, SystemClock(), bundle, some_tokens(2, 30), options);
  };
  hooks.calibrate = [](const ModelBundle& bundle) {
    const auto device = make_reference_device();
    return calibrate(*device, bundle, some_tokens(4, 40, 5));
  };
  return hooks;
}

CompressSpec spec_of(WeightFormat weights, PruningKind pruning = PruningKind::kNone,
                     double sparsity = 0) {
  CompressSpec spec;
  spec.weights = weights;
  spec.pruning = pruning;
  spec.sparsity = sparsity;
  return spec;
}

double zeros(const TensorSource& tensors, const std::string& name) {
  const std::vector<float> values = tensors.tensor(name)->to_floats();
  return static_cast<double>(std::count(values.begin(), values.end(), 0.0f)) /
         static_cast<double>(values.size());
}

}  // namespace

TEST_CASE("every format gives a model that loads, within its error of the original") {
  for (const Architecture architecture : {Architecture::kGpt2, Architecture::kLlama})
    for (const WeightFormat format : kFormats) {
      CAPTURE(architecture_name(architecture));
      CAPTURE(weight_format_name(format));
      const FlatModel model = small_model(architecture, architecture == Architecture::kGpt2);
      Compressor compressor(bundle_of(model), real_hooks());
      const auto result = compressor.run(spec_of(format));
      if (!result.ok()) FAIL(result.error().message());
      CHECK(check_bundle(result->bundle).ok());
      CHECK(bundle_weight_formats(result->bundle)->empty() == !is_quantised(format));
      CHECK((result->after.bytes < result->before.bytes || format == WeightFormat::kFloat32));
      // Relative output errors add over two layers; int4 loses about 9 % a matrix on normal
      // weights, int8 0.6 %.
      const double tolerance = format_bits(format) == 4           ? 0.25
                               : format == WeightFormat::kFloat32 ? 1e-12
                                                                  : 0.02;
      CHECK(std::fabs(std::log(result->after.perplexity / result->before.perplexity)) <= tolerance);
      CHECK(result->card.find("weights")->as_string() == weight_format_name(format));
      CHECK(result->card.find("after")->find("bytes")->as_int() ==
            static_cast<int64_t>(result->after.bytes));
    }
}

TEST_CASE(
    "a tied model gets a quantised head beside its embedding, and int4 keeps the head in 8 bits") {
  Compressor compressor(bundle_of(small_model(Architecture::kGpt2, true)), real_hooks());
  const auto bundle = compressor.compress(spec_of(WeightFormat::kInt4Group32));
  if (!bundle.ok()) FAIL(bundle.error().message());
  const auto formats = *bundle_weight_formats(*bundle);
  CHECK(formats.at("lm_head.weight") == WeightFormat::kInt8Group128);
  CHECK(formats.at("transformer.h.0.attn.c_attn.weight") == WeightFormat::kInt4Group32);
  CHECK(formats.size() == 2 * 4 + 1);
  CHECK(bundle->tensors->tensor("transformer.wte.weight")->dtype == DType::kF16);
  CHECK(bundle->tensors->tensor("transformer.wpe.weight")->dtype == DType::kF16);
  CHECK(bundle->tensors->tensor("transformer.h.0.ln_1.weight")->dtype == DType::kF32);
  CHECK(bundle->tensors->tensor("transformer.h.0.attn.c_attn.weight.codes")->shape ==
        std::vector<int64_t>{96, 16});
  CHECK(bundle_config(*bundle)->tied_embeddings);
  CHECK(bundle->documents.at("tokenizer.json") == "{}");
}

TEST_CASE("each kind of pruning leaves its share of zeros, or fewer neurons") {
  Compressor compressor(bundle_of(small_model(Architecture::kLlama, false)), real_hooks());
  const std::string q = "model.layers.1.self_attn.q_proj.weight", head = "lm_head.weight";
  for (const auto& [kind, sparsity, share] :
       {std::tuple(PruningKind::kMagnitude, 0.25, 0.25),
        std::tuple(PruningKind::kWanda, 0.75, 0.75), std::tuple(PruningKind::k2of4, 0.0, 0.5),
        std::tuple(PruningKind::kWanda2of4, 0.0, 0.5)}) {
    CAPTURE(pruning_kind_name(kind));
    const auto bundle = compressor.compress(spec_of(WeightFormat::kFloat32, kind, sparsity));
    if (!bundle.ok()) FAIL(bundle.error().message());
    CHECK(zeros(*bundle->tensors, q) == doctest::Approx(share).epsilon(0.01));
    CHECK(zeros(*bundle->tensors, head) == 0);
  }
  const auto slim =
      compressor.compress(spec_of(WeightFormat::kInt8Row, PruningKind::kNeurons, 0.5));
  if (!slim.ok()) FAIL(slim.error().message());
  CHECK(bundle_config(*slim)->intermediate_size == 48);
  CHECK(slim->tensors->tensor("model.layers.0.mlp.down_proj.weight.codes")->shape ==
        std::vector<int64_t>{32, 48});
}

TEST_CASE("a model with unlike widths stays one, and its config says so") {
  FlatModel model = small_model(Architecture::kLlama, false);
  model.config.intermediate_sizes = {96, 64};
  const ParameterLayout layout(model.config);
  model.flat.assign(layout.elements(), 0.01f);
  Compressor compressor(bundle_of(model), real_hooks());
  const auto slim =
      compressor.compress(spec_of(WeightFormat::kBFloat16, PruningKind::kNeurons, 0.5));
  if (!slim.ok()) FAIL(slim.error().message());
  CHECK(bundle_config(*slim)->intermediate_sizes == std::vector<int>{48, 32});
}

TEST_CASE("a broken contract publishes nothing and names the setting that passes, measured") {
  CompressorHooks hooks = real_hooks();
  hooks.measure = [](const ModelBundle& bundle) -> Result<Measurement> {
    const auto formats = *bundle_weight_formats(bundle);
    const bool int4 = std::any_of(formats.begin(), formats.end(), [](const auto& matrix) {
      return format_bits(matrix.second) == 4;
    });
    return Measurement{*bundle_bytes(bundle), int4 ? 9.0 : 8.0, 100};
  };
  Compressor compressor(bundle_of(small_model(Architecture::kLlama, false)), hooks);
  CompressSpec spec = spec_of(WeightFormat::kInt4Group32);
  spec.head = WeightFormat::kInt4Group32;
  spec.max_perplexity_increase = 0.05;
  const auto result = compressor.run(spec);
  REQUIRE(!result.ok());
  CHECK(result.error().code == ErrorCode::kContractBroken);
  CHECK(result.error().what.find("rises by 12.5 %") != std::string::npos);
  CHECK(result.error().hint.find("int8 would pass") == 0);
}

TEST_CASE("the same settings give the same bytes, on one thread or in any order") {
  const FlatModel model = small_model(Architecture::kLlama, false);
  CompressorHooks backwards = real_hooks();
  backwards.parallel = [](int64_t items, const std::function<void(int64_t)>& body) {
    for (int64_t i = items; i-- > 0;) body(i);
  };
  const CompressSpec spec = spec_of(WeightFormat::kInt4Group128, PruningKind::kWanda, 0.5);
  const auto one = Compressor(bundle_of(model), real_hooks()).compress(spec);
  const auto two = Compressor(bundle_of(model), backwards).compress(spec);
  REQUIRE((one.ok() && two.ok()));
  CHECK(one->documents == two->documents);
  for (const std::string& name : one->tensors->names()) {
    const TensorView a = *one->tensors->tensor(name), b = *two->tensors->tensor(name);
    CHECK(std::equal(a.bytes.begin(), a.bytes.end(), b.bytes.begin(), b.bytes.end()));
  }
}

TEST_CASE("a quantised model, absent text, nonsense and a raised flag are refused clearly") {
  const ModelBundle bundle = bundle_of(small_model(Architecture::kLlama, false), DType::kBF16);
  Compressor compressor(bundle, real_hooks());
  const auto small = compressor.compress(spec_of(WeightFormat::kInt8Row));
  REQUIRE(small.ok());
  CHECK(small->tensors->tensor("model.embed_tokens.weight")->dtype == DType::kBF16);
  CHECK(Compressor(*small, real_hooks()).run(spec_of(WeightFormat::kInt8Row)).error().code ==
        ErrorCode::kUnsupported);
  CHECK(compressor.run(spec_of(WeightFormat::kInt8Row, PruningKind::kWanda, 0)).error().code ==
        ErrorCode::kInvalidArgument);
  CompressorHooks hooks = real_hooks();
  hooks.calibrate = nullptr;
  CHECK(Compressor(bundle, hooks)
            .compress(spec_of(WeightFormat::kInt8Row, PruningKind::kNeurons, 0.5))
            .error()
            .where == "calibration");
  CancelFlag cancel;
  cancel.raise();
  hooks.cancel = &cancel;
  CHECK(Compressor(bundle, hooks).run(spec_of(WeightFormat::kInt8Row)).error().code ==
        ErrorCode::kCancelled);
}
