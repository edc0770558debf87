// Quantised weights that go to the card as a checkpoint holds them.
#include "gpu/decode_ops.h"
#include "model/decoder.h"
#include "tests/cpu/decode_cases.h"
#include "tests/gpu/gpu_tests.h"
#include "tests/transformer/tiny_models.h"

namespace fastserve::harness {
namespace {

constexpr WeightFormat kQuantised[] = {WeightFormat::kInt8Row, WeightFormat::kInt8Group32,
                                       WeightFormat::kInt8Group128, WeightFormat::kInt4Group32,
                                       WeightFormat::kInt4Group128};

/// Where weights go: through small pieces, where that can be chosen.
struct Card {
#if defined(FASTSERVE_ON_CARD)
  std::unique_ptr<Device> device = card();
  std::unique_ptr<DecodeOps> ops = device->make_decode_ops();
  Status sync() { return device->sync(); }
  auto allocate_host(size_t bytes) { return device->allocate_host(bytes).value(); }
#else
  std::unique_ptr<gpu::Runtime> runtime = simt::make_emulated_runtime();
  std::unique_ptr<DecodeOps> ops = gpu::make_decode_ops(*runtime, 5000);
  Status sync() { return runtime->sync(); }
  auto allocate_host(size_t bytes) { return runtime->allocate_host(bytes).value(); }
#endif
};

/// Some matrices in memory and in a checkpoint, as parts of one.
struct Parts {
  Parts(WeightFormat format, std::span<const int> rows, int in, bool pruned, DType scale_type) {
    Rng rng(static_cast<uint64_t>(in) + 3);
    matrices.reserve(rows.size());
    for (const int r : rows) {
      QuantisedMatrix& m =
          matrices.emplace_back(decode_cases::random_quantised(rng, format, r, in));
      if (pruned) decode_cases::prune_two_of_four(rng, m);
      const std::string name = std::to_string(matrices.size());
      add_quantised(tensors, name, m);
      tensors.add(name + ".scales", Tensor::from_floats({r, m.groups()}, m.scales, scale_type));
      const StoredQuantised found = find_quantised(tensors, name, format, in).value();
      plain.push_back({{}, &m, r});
      stored.push_back({{}, nullptr, r, found.codes.bytes, scale_type, found.scales.bytes});
    }
  }
  std::vector<QuantisedMatrix> matrices;
  TensorMap tensors;
  std::vector<DecodeMatrixSource::Part> plain, stored;
};

/// The same parts with their bytes in pinned memory, one after another and so aligned to nothing.
struct PinnedParts {
  PinnedParts(Card& card, std::span<const DecodeMatrixSource::Part> stored)
      : parts(stored.begin(), stored.end()) {
    size_t bytes = 1;
    for (const auto& part : parts) bytes += part.stored.size() + part.scales.size();
    memory = card.allocate_host(bytes);
    auto* to = static_cast<std::byte*>(memory->data()) + 1;
    const auto move = [&](std::span<const std::byte>& from) {
      std::copy(from.begin(), from.end(), to);
      from = {to, from.size()};
      to += from.size();
    };
    for (auto& part : parts) {
      move(part.stored);
      move(part.scales);
    }
  }
  std::unique_ptr<DeviceBuffer> memory;
  std::vector<DecodeMatrixSource::Part> parts;
};

Outputs product(DecodeOps& ops, const DecodeMatrix& matrix, bool gated) {
  constexpr int kRows = 3;
  Rng rng(8);
  const size_t out = static_cast<size_t>(gated ? matrix.out() / 2 : matrix.out());
  Array x = random_floats(rng, reference::at(kRows, matrix.in()));
  Array y = unwritten_floats(kRows * out);
  ops.matmul({&matrix,
              x.floats(),
              kRows,
              matrix.in(),
              {},
              nullptr,
              nullptr,
              gated ? DecodeEpilogue::kSwiGlu : DecodeEpilogue::kStore,
              y.floats(),
              static_cast<int>(out)});
  return {float_output("out", y, 1)};
}

/// A quantised model whose tensors may be spoilt before it is loaded.
struct QuantisedModel {
  QuantisedModel() : config(tiny_config(Architecture::kLlama)) {
    const ParameterLayout layout(config);
    const std::vector<float> flat = tiny_weights(layout, 7);
    *tensors = save_parameters(layout, flat, DType::kF32);
    Rng rng(5);
    Json weights;
    for (const Parameter& p : layout.parameters()) {
      if (p.name.find("_proj") == std::string::npos) continue;
      add_quantised(*tensors, p.name, decode_cases::random_quantised(rng, kFormat, p.rows, p.cols));
      weights.set(p.name, weight_format_name(kFormat));
    }
    Json json = config.to_json();
    Json own = json.find("fastserve") ? *json.find("fastserve") : Json();
    own.set("weights", weights);
    json.set("fastserve", own);
    bundle = {{{"config.json", json.dump()}}, tensors};
  }
  void spoil(const std::string& name, bool code) {
    Tensor tensor;
    const std::string part = name + (code ? ".codes" : ".scales");
    const TensorView view = tensors->tensor(part).value();
    tensor.dtype = view.dtype;
    tensor.shape = view.shape;
    tensor.bytes.assign(view.bytes.begin(), view.bytes.end());
    if (code)
      tensor.bytes[7] = std::byte{0x80};
    else
      tensor.bytes[3] = std::byte{0x7e};  // a NaN of 16 bits
    tensors->add(part, std::move(tensor));
  }
  Result<std::unique_ptr<Decoder>> load(Device& device) const {
    DecoderOptions options;
    options.kv_blocks = 4;
    options.max_rows = 4;
    return Decoder::load(device, bundle, options);
  }

  static constexpr WeightFormat kFormat = WeightFormat::kInt8Group32;
  ModelConfig config;
  std::shared_ptr<TensorMap> tensors = std::make_shared<TensorMap>("here");
  ModelBundle bundle;
};

}  // namespace

TEST_CASE("codes and scales that are given as they are stored become the matrix of their values") {
  Card card;
  const auto& ops = card.ops;
  REQUIRE(ops->takes_stored());
  for (const WeightFormat format : kQuantised)
    for (const DType scales : {DType::kF16, DType::kF32})
      for (const int in : {1, 7, 70, 131, 384})
        for (const bool gated : {false, true})
          for (const bool pruned : {false, true}) {
            if (pruned && format_bits(format) == 4) continue;
            if (scales == DType::kF16 && format_group(format) == 0) continue;  // would be rounded
            CAPTURE(weight_format_name(format));
            CAPTURE(in);
            const std::vector<int> rows = gated ? std::vector{21, 21} : std::vector{37, 2, 20};
            const Parts parts(format, rows, in, pruned, scales);
            const auto plain = ops->make_matrix({parts.plain, in, format, gated}).value();
            const auto stored = ops->make_matrix({parts.stored, in, format, gated}).value();
            const PinnedParts pinned(card, parts.stored);
            const auto direct = ops->make_matrix({pinned.parts, in, format, gated}).value();
            CHECK(plain->bytes() == stored->bytes());
            CHECK(plain->bytes() == direct->bytes());
            const Outputs expected = product(*ops, *plain, gated);
            require_same_bits(weight_format_name(format), expected, product(*ops, *stored, gated));
            require_same_bits(weight_format_name(format), expected, product(*ops, *direct, gated));
            CHECK(card.sync().ok());  // before what it was made of goes
          }
  CHECK_FALSE(ops->loaded().has_value());
  CHECK(card.sync().ok());
}

TEST_CASE(
    "a stored code out of range is found by the card, and the first part that has one named") {
  Card card;
  const auto& ops = card.ops;
  const auto load = [&](WeightFormat format, bool pruned, auto spoil) {
    Parts parts(format, std::vector{5, 40}, 70, pruned, DType::kF32);
    for (int first = 0; first < 2; ++first)
      REQUIRE(ops->make_matrix({parts.stored, 70, format, false}).ok());
    spoil(parts.stored);
    const PinnedParts pinned(card, parts.stored);
    REQUIRE(ops->make_matrix({parts.stored, 70, format, false}).ok());
    const auto found = ops->loaded();
    // From pinned memory the same is found.
    for (int first = 0; first < 2; ++first)
      REQUIRE(ops->make_matrix({Parts(format, std::vector{5, 40}, 70, pruned, DType::kF32).stored,
                                70, format, false})
                  .ok());
    REQUIRE(ops->make_matrix({pinned.parts, 70, format, false}).ok());
    const auto direct = ops->loaded();
    REQUIRE(direct.has_value() == found.has_value());
    if (found) CHECK((direct->part == found->part && direct->in_codes == found->in_codes));
    return found;
  };
  const auto set = [](std::span<const std::byte> bytes, size_t at, int to) {
    const_cast<std::byte&>(bytes[at]) = static_cast<std::byte>(to);
  };
  using Given = std::vector<DecodeMatrixSource::Part>;
  for (const WeightFormat format : kQuantised) {
    CAPTURE(weight_format_name(format));
    const bool narrow = format_bits(format) == 4;
    for (const bool pruned : {false, true}) {
      if (pruned && narrow) continue;
      // Nothing is wrong with a zero, or with what lies past an odd row's end.
      CHECK_FALSE(load(format, pruned, [](const Given&) {}).has_value());
      const auto last = load(format, pruned, [&](const Given& parts) {
        set(parts[1].stored, narrow ? 17 : 68, narrow ? 0x50 : 0x80);
      });
      REQUIRE(last.has_value() == (format != WeightFormat::kInt4Group32));
      if (last) CHECK((last->part == 5 && last->in_codes));
      // Of two parts the first, whichever is wrong with it; of codes and scales the codes.
      const auto scale = load(format, pruned, [&](const Given& parts) {
        set(parts[0].scales, 3, 0x7f);
        set(parts[0].scales, 2, 0xc0);
        set(parts[1].stored, 0, narrow ? 0 : 0x80);
      });
      REQUIRE(scale.has_value());
      CHECK((scale->part == 4 && !scale->in_codes));
    }
  }
  CHECK(card.sync().ok());
}

TEST_CASE("more parts than are looked at together are all looked at") {
  Card card;
  const auto& ops = card.ops;
  Parts parts(WeightFormat::kInt8Row, std::vector{1, 1, 1}, 8, false, DType::kF32);
  for (int i = 0; i < 700; ++i) {
    const_cast<std::byte&>(parts.stored[2].stored[3]) = std::byte(i == 150 ? 0x80 : 1);
    REQUIRE(ops->make_matrix({parts.stored, 8, WeightFormat::kInt8Row, false}).ok());
  }
  const auto fault = ops->loaded();
  REQUIRE(fault.has_value());
  CHECK(fault->part == 152 + 2 * 150);
  CHECK_FALSE(ops->loaded().has_value());
  CHECK(card.sync().ok());
}

TEST_CASE(
    "a quantised model with a code or a scale out of range is refused as the CPU refuses it") {
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  for (const bool code : {true, false}) {
    QuantisedModel model;
    const auto device = emulated_gpu({.own_memory = true});
    const auto sound = model.load(*device);
    REQUIRE_MESSAGE(sound.ok(), sound.error().message());
    model.spoil(name, code);
    model.spoil("model.layers.1.mlp.down_proj.weight", !code);
    const auto refused = model.load(*device);
    REQUIRE_FALSE(refused.ok());
    const auto expected = read_quantised(*model.tensors, name, QuantisedModel::kFormat);
    CHECK(refused.error().code == ErrorCode::kCorrupt);
    CHECK(refused.error().message() == expected.error().message());
    CHECK(device->sync().ok());
  }
}

TEST_CASE("no token comes from a model of which the card finds at the end that it is damaged") {
  QuantisedModel model;
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  model.spoil(name, true);
  const auto expected = read_quantised(*model.tensors, name, QuantisedModel::kFormat);
  const std::vector<int32_t> tokens = {1, 2, 3}, blocks = {0}, wanted = {2};
  const Segment segment{0, 3, 0, blocks};
  const std::vector<TokenDraw> draws(1);
  for (const int parts : {0, 1, 3}) {
    CAPTURE(parts);
    const auto device = emulated_gpu({.own_memory = true});
    DecoderOptions options;
    options.kv_blocks = 4;
    options.max_rows = 4;
    const auto decoder = Decoder::begin(*device, model.bundle, options).value();
    for (int i = 0; i < parts; ++i) REQUIRE(decoder->load_more().ok());
    for (int again = 0; again < 2; ++again) {
      const auto drawn = decoder->step_and_draw(tokens, {&segment, 1}, wanted, draws);
      REQUIRE_FALSE(drawn.ok());
      CHECK(drawn.error().message() == expected.error().message());
    }
    CHECK(decoder->load_more().error().message() == expected.error().message());
    CHECK_FALSE(decoder->loaded());
  }
}

}  // namespace fastserve::harness
