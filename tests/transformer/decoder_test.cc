// The inference pass as the server sees it.
#include "model/decoder.h"

#include <doctest/doctest.h>

#include <cmath>
#include <numeric>

#include "cpu/cpu_device.h"
#include "model/quantised.h"
#include "tests/transformer/tiny_models.h"

namespace fastserve {
namespace {

constexpr int kBlockTokens = 16;

std::unique_ptr<Device> fast_device(int lanes = 1) {
  return make_cpu_device({.lanes = lanes, .isa = best_isa()}).value();
}

DecoderOptions options(WeightFormat weights = WeightFormat::kFloat32,
                       KvType kv = KvType::kFloat32) {
  DecoderOptions o;
  o.weights = weights;
  o.kv = kv;
  o.kv_blocks = 12;
  o.block_tokens = kBlockTokens;
  o.max_rows = 48;
  return o;
}

std::vector<int32_t> tokens_of(const ModelConfig& config, size_t n, uint64_t seed) {
  Rng rng(seed);
  std::vector<int32_t> tokens(n);
  for (int32_t& t : tokens)
    t = static_cast<int32_t>(rng.below(static_cast<uint64_t>(config.vocab_size)));
  return tokens;
}

/// Logits after every token of a sequence that arrives in the given chunks.
std::vector<float> logits_of(Decoder& decoder, std::span<const int32_t> tokens,
                             std::span<const int32_t> blocks, std::vector<int> chunks) {
  std::vector<float> all;
  int position = 0;
  for (const int n : chunks) {
    const Segment segment{0, n, position, blocks};
    std::vector<int32_t> wanted(static_cast<size_t>(n));
    std::iota(wanted.begin(), wanted.end(), 0);
    const auto logits =
        decoder
            .step(tokens.subspan(static_cast<size_t>(position), static_cast<size_t>(n)),
                  {&segment, 1}, wanted)
            .value();
    all.insert(all.end(), logits.begin(), logits.end());
    position += n;
  }
  return all;
}

double relative(std::span<const float> truth, std::span<const float> value) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < truth.size(); ++i) {
    difference += (double(value[i]) - truth[i]) * (double(value[i]) - truth[i]);
    norm += double(truth[i]) * truth[i];
  }
  return std::sqrt(difference / norm);
}

/// int8 of every matrix the decoder multiplies with; `flat` becomes what the codes stand for.
ModelBundle quantised_bundle(const ModelConfig& config, const ParameterLayout& layout,
                             std::vector<float>& flat, WeightFormat format) {
  TensorMap quantised;
  Json weights;
  for (const Parameter& p : layout.parameters()) {
    if (!p.decay || p.offset <= layout.position_embedding().offset ||
        p.offset == layout.token_embedding().offset)
      continue;
    QuantisedMatrix m;
    m.format = format;
    m.rows = p.rows;
    m.cols = p.cols;
    const int group = format_group(format) ? format_group(format) : p.cols;
    const int most = format_bits(format) == 8 ? 127 : 7, zero = format_bits(format) == 8 ? 0 : 8;
    for (int r = 0; r < p.rows; ++r) {
      float* row = flat.data() + p.offset + static_cast<size_t>(r) * static_cast<size_t>(p.cols);
      for (int from = 0; from < p.cols; from += group) {
        float peak = 0;
        const int to = std::min(p.cols, from + group);
        for (int c = from; c < to; ++c) peak = std::max(peak, std::abs(row[c]));
        float scale = peak / static_cast<float>(most);
        if (format_group(format)) scale = to_float(to_float16(scale));
        m.scales.push_back(scale);
        for (int c = from; c < to; ++c) {
          const int code = std::clamp(static_cast<int>(std::lround(row[c] / scale)), -most, most);
          m.codes.push_back(static_cast<uint8_t>(code + zero));
          row[c] = static_cast<float>(code) * scale;
        }
      }
    }
    add_quantised(quantised, p.name, m);
    weights.set(p.name, weight_format_name(format));
  }
  const TensorMap floats = save_parameters(layout, flat, DType::kF32);
  for (const Parameter& p : layout.parameters())
    if (!weights.find(p.name)) {
      const TensorView view = floats.tensor(p.name).value();
      quantised.add(p.name, Tensor::from_floats(view.shape, view.to_floats()));
    }
  ModelBundle bundle;
  Json json = config.to_json();
  Json own = json.find("fastserve") ? *json.find("fastserve") : Json();
  own.set("weights", weights);
  json.set("fastserve", own);
  bundle.documents["config.json"] = json.dump();
  bundle.tensors = std::make_shared<TensorMap>(std::move(quantised));
  return bundle;
}

}  // namespace

TEST_CASE("inference gives the logits of training, in every architecture") {
  const auto device = fast_device();
  for (const Architecture architecture : kArchitectures) {
    CAPTURE(architecture_name(architecture));
    TinyTrainer trainer(*device, tiny_config(architecture), Precision::kFloat32, 64);
    const Microbatch batch = tiny_batch(trainer.config, {40}, 21);
    trainer.pass->run(*trainer.weights, batch, 1, nullptr);
    const std::vector<float> truth = trainer.pass->logits(*trainer.weights);
    const ModelBundle bundle =
        tiny_bundle(trainer.config, trainer.layout, trainer.weights->masters());
    auto decoder = Decoder::load(*device, bundle, options());
    REQUIRE_MESSAGE(decoder.ok(), decoder.error().message());
    const std::vector<int32_t> blocks = {5, 0, 9};
    CHECK(relative(truth, logits_of(**decoder, batch.tokens, blocks, {40})) < 1e-5);
    CHECK((*decoder)->config() == trainer.config);
  }
}

TEST_CASE("a sequence's logits have the same bits in chunks, token by token, and in company") {
  const auto device = fast_device(2);
  for (const Architecture architecture : kArchitectures)
    for (const WeightFormat format : {WeightFormat::kFloat32, WeightFormat::kBFloat16}) {
      CAPTURE(architecture_name(architecture));
      const ModelConfig config = tiny_config(architecture);
      const ParameterLayout layout(config);
      const std::vector<float> flat = tiny_weights(layout, 3);
      auto decoder = Decoder::load(*device, tiny_bundle(config, layout, flat),
                                   options(format, KvType::kFloat16));
      REQUIRE(decoder.ok());
      const std::vector<int32_t> tokens = tokens_of(config, 36, 22), blocks = {7, 2, 4};
      const std::vector<int32_t> other_blocks = {1, 11, 3}, others = tokens_of(config, 36, 23);
      const auto whole = logits_of(**decoder, tokens, blocks, {36});
      CHECK(logits_of(**decoder, tokens, blocks, {5, 16, 1, 14}) == whole);
      CHECK(logits_of(**decoder, tokens, blocks, std::vector<int>(36, 1)) == whole);

      std::vector<float> last;
      int position = 0;
      for (const int n : {11, 20, 5}) {
        std::vector<int32_t> rows(others.begin() + position, others.begin() + position + n);
        rows.insert(rows.end(), tokens.begin() + position, tokens.begin() + position + n);
        const Segment segments[] = {{0, n, position, other_blocks}, {n, n, position, blocks}};
        const int32_t wanted[] = {0, 2 * n - 1};
        const auto logits = (*decoder)->step(rows, segments, wanted).value();
        last.assign(logits.begin() + config.vocab_size, logits.end());
        position += n;
      }
      CHECK(std::equal(last.begin(), last.end(), whole.end() - config.vocab_size));
    }
}

TEST_CASE("keys and values as int8 move the logits by less than 2 %") {
  const auto device = fast_device();
  for (const Architecture architecture : kArchitectures) {
    const ModelConfig config = tiny_config(architecture);
    const ParameterLayout layout(config);
    const ModelBundle bundle = tiny_bundle(config, layout, tiny_weights(layout, 5));
    const std::vector<int32_t> tokens = tokens_of(config, 40, 25), blocks = {7, 2, 4};
    const auto logits = [&](WeightFormat weights, KvType kv, std::vector<int> chunks) {
      const auto decoder = Decoder::load(*device, bundle, options(weights, kv)).value();
      return logits_of(*decoder, tokens, blocks, std::move(chunks));
    };
    const std::vector<int> chunks = {21, 1, 11, 7};
    const auto exact = logits(WeightFormat::kFloat32, KvType::kFloat32, chunks);
    const auto narrow = logits(WeightFormat::kFloat32, KvType::kInt8, chunks);
    const double moved = relative(exact, narrow);
    INFO(architecture_name(architecture), ": ", moved);
    CHECK(moved > 0);
    CHECK(moved < 0.02);  // measured: 0.4 % (GPT-2) to 1.2 %, where bfloat16 weights do 0.5 to 1.3
    CHECK(logits(WeightFormat::kFloat32, KvType::kInt8, std::vector<int>(40, 1)) == narrow);
  }
}

TEST_CASE("scores are the log probabilities of the next tokens, whatever the chunks") {
  const auto device = fast_device();
  const ModelConfig config = tiny_config(Architecture::kMistral);
  const ParameterLayout layout(config);
  const ModelBundle bundle = tiny_bundle(config, layout, tiny_weights(layout, 4));
  const std::vector<int32_t> tokens = tokens_of(config, 40, 24), blocks = {0, 1, 2};
  const size_t vocab = static_cast<size_t>(config.vocab_size);
  std::vector<double> first;
  for (const int max_rows : {48, 7}) {
    DecoderOptions o = options();
    o.max_rows = max_rows;
    o.max_logits = 5;
    auto decoder = Decoder::load(*device, bundle, o);
    REQUIRE(decoder.ok());
    const std::vector<double> scores = (*decoder)->score(tokens, blocks).value();
    REQUIRE(scores.size() == 39);
    if (first.empty()) first = scores;
    CHECK(scores == first);
  }
  auto decoder = Decoder::load(*device, bundle, options());
  const auto logits = logits_of(**decoder, tokens, blocks, {40});
  for (size_t t = 0; t < 39; ++t) {
    double sum = 0;
    for (size_t v = 0; v < vocab; ++v) sum += std::exp(double(logits[t * vocab + v]));
    const double expected = std::log(sum) - logits[t * vocab + static_cast<size_t>(tokens[t + 1])];
    CHECK(first[t] == doctest::Approx(expected).epsilon(1e-5));
  }
  CHECK((*decoder)->score(std::span(tokens).first(1), blocks).value().empty());
}

TEST_CASE("a quantised model answers as the numbers its codes stand for") {
  const auto device = fast_device();
  for (const Architecture architecture : kArchitectures)
    for (const WeightFormat format :
         {WeightFormat::kInt8Row, WeightFormat::kInt8Group32, WeightFormat::kInt8Group128,
          WeightFormat::kInt4Group32, WeightFormat::kInt4Group128}) {
      CAPTURE(architecture_name(architecture));
      CAPTURE(weight_format_name(format));
      const ModelConfig config = tiny_config(architecture);
      const ParameterLayout layout(config);
      std::vector<float> flat = tiny_weights(layout, 5);
      const ModelBundle quantised = quantised_bundle(config, layout, flat, format);
      auto decoder = Decoder::load(*device, quantised, options());
      REQUIRE_MESSAGE(decoder.ok(), decoder.error().message());
      auto plain = Decoder::load(*device, tiny_bundle(config, layout, flat), options());
      REQUIRE(plain.ok());
      const std::vector<int32_t> tokens = tokens_of(config, 36, 25), blocks = {0, 1, 2};
      // Only the activations' int8 stands between the two: about 1 % a matrix (FINDINGS: 1.2 %).
      CHECK(relative(logits_of(**plain, tokens, blocks, {36}),
                     logits_of(**decoder, tokens, blocks, {36})) < 0.05);
      if (format != WeightFormat::kInt8Row) CHECK((*decoder)->weight_bytes() > 0);
    }
}

TEST_CASE("a tied model may carry a head of its own in another format") {
  const auto device = fast_device();
  const ModelConfig config = tiny_config(Architecture::kQwen2);
  const ParameterLayout layout(config);
  const std::vector<float> flat = tiny_weights(layout, 6);
  ModelBundle bundle = tiny_bundle(config, layout, flat);
  // A head whose rows are all alike: every token gets the same logit, which the tied one never
  // gives.
  QuantisedMatrix head;
  head.format = WeightFormat::kInt8Group128;
  head.rows = config.vocab_size;
  head.cols = config.hidden_size;
  head.codes.assign(static_cast<size_t>(head.rows * head.cols), 100);
  head.scales.assign(static_cast<size_t>(head.rows), 0.0078125f);
  TensorMap tensors = save_parameters(layout, flat, DType::kF32);
  add_quantised(tensors, "lm_head.weight", head);
  bundle.tensors = std::make_shared<TensorMap>(std::move(tensors));
  Json json = config.to_json(), weights,
       own = json.find("fastserve") ? *json.find("fastserve") : Json();
  weights.set("lm_head.weight", "int8-g128");
  own.set("weights", weights);
  json.set("fastserve", own);
  bundle.documents["config.json"] = json.dump();
  auto decoder = Decoder::load(*device, bundle, options());
  REQUIRE_MESSAGE(decoder.ok(), decoder.error().message());
  const std::vector<int32_t> blocks = {0};
  const auto logits = logits_of(**decoder, tokens_of(config, 3, 26), blocks, {3});
  for (int v = 1; v < config.vocab_size; ++v) CHECK(logits[static_cast<size_t>(v)] == logits[0]);
}

TEST_CASE("matrices that are multiplied as one must share a format") {
  const auto device = fast_device();
  const ModelConfig config = tiny_config(Architecture::kLlama);
  const ParameterLayout layout(config);
  std::vector<float> flat = tiny_weights(layout, 8);
  ModelBundle bundle = quantised_bundle(config, layout, flat, WeightFormat::kInt8Group32);
  const std::string name = "model.layers.1.self_attn.k_proj.weight";
  TensorMap tensors;
  for (const std::string& n : bundle.tensors->names()) {
    if (n.starts_with(name)) continue;
    const TensorView view = bundle.tensors->tensor(n).value();
    tensors.add(n, {view.dtype, view.shape, {view.bytes.begin(), view.bytes.end()}});
  }
  const TensorMap floats = save_parameters(layout, flat, DType::kF32);
  tensors.add(name,
              Tensor::from_floats(floats.tensor(name)->shape, floats.tensor(name)->to_floats()));
  bundle.tensors = std::make_shared<TensorMap>(std::move(tensors));
  Json json = Json::parse(bundle.documents["config.json"], "config.json").value();
  Json own = *json.find("fastserve"), kept;
  for (const auto& [key, value] : own.find("weights")->as_object())
    if (key != name) kept.set(key, value);
  own.set("weights", kept);
  json.set("fastserve", own);
  bundle.documents["config.json"] = json.dump();
  const auto decoder = Decoder::load(*device, bundle, options());
  REQUIRE_FALSE(decoder.ok());
  CHECK(decoder.error().code == ErrorCode::kUnsupported);
  CHECK(decoder.error().what.find("k_proj") != std::string::npos);
}

TEST_CASE("half-precision checkpoints keep their embeddings as they are stored") {
  const auto device = fast_device();
  const ModelConfig config = tiny_config(Architecture::kGpt2);
  const ParameterLayout layout(config);
  const std::vector<float> flat = tiny_weights(layout, 9);
  const std::vector<int32_t> tokens = tokens_of(config, 20, 27), blocks = {0, 1};
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const ModelBundle stored = tiny_bundle(config, layout, flat, dtype);
    std::vector<float> rounded(flat.size());
    REQUIRE(load_parameters(layout, *stored.tensors, rounded).ok());
    auto half = Decoder::load(*device, stored, options());
    auto full = Decoder::load(*device, tiny_bundle(config, layout, rounded), options());
    REQUIRE(half.ok());
    REQUIRE(full.ok());
    CHECK(logits_of(**half, tokens, blocks, {20}) == logits_of(**full, tokens, blocks, {20}));
  }
}

TEST_CASE("loading reports its progress up to one, and refuses what cannot be") {
  const auto device = fast_device();
  const ModelConfig config = tiny_config(Architecture::kLlama);
  const ParameterLayout layout(config);
  const ModelBundle bundle = tiny_bundle(config, layout, tiny_weights(layout, 10));
  std::vector<double> seen;
  REQUIRE(Decoder::load(*device, bundle, options(), [&](double p) { seen.push_back(p); }).ok());
  CHECK(std::is_sorted(seen.begin(), seen.end()));
  CHECK(seen.back() == 1.0);

  DecoderOptions quantised = options(WeightFormat::kInt8Row), none = options(), rows = options();
  none.kv_blocks = 0;
  rows.max_logits = rows.max_rows + 1;
  for (const DecoderOptions& bad : {quantised, none, rows}) {
    const auto decoder = Decoder::load(*device, bundle, bad);
    REQUIRE_FALSE(decoder.ok());
    CHECK(decoder.error().code == ErrorCode::kInvalidArgument);
    CHECK_FALSE(decoder.error().hint.empty());
  }
}

}  // namespace fastserve
