// Decode steps whose operations are one kernel, beside the same with a kernel for each.
#include <doctest/doctest.h>

#include "model/decoder.h"
#include "tests/cpu/decode_cases.h"
#include "tests/gpu/even_config.h"
#include "tests/gpu/gpu_tests.h"

namespace fastserve::harness {
namespace {

constexpr int kBlockTokens = 16;

#if defined(__SANITIZE_THREAD__)
constexpr WeightFormat kFormats[] = {WeightFormat::kInt8Group128};
constexpr KvType kTypes[] = {KvType::kInt8};
#else
constexpr WeightFormat kFormats[] = {WeightFormat::kBFloat16,    WeightFormat::kInt8Row,
                                     WeightFormat::kInt8Group32, WeightFormat::kInt8Group128,
                                     WeightFormat::kInt4Group32, WeightFormat::kInt4Group128};
constexpr KvType kTypes[] = {KvType::kFloat16, KvType::kInt8};
#endif

struct Case {
  WeightFormat format = WeightFormat::kBFloat16;
  KvType kv = KvType::kFloat16;
  int head_dim = 16;
  bool pruned = false;
  int first_wide = 148;  ///< neurons of the first layer
  Architecture architecture = Architecture::kLlama;
  std::string text() const {
    return fmt::format("{} {}{}, heads of {} in {}", architecture_name(architecture),
                       weight_format_name(format), pruned ? " 2:4" : "", head_dim,
                       kv_type_name(kv));
  }
};

/// A model of two layers whose matrices have that format, but for a head of bfloat16.
ModelBundle bundle_of(const Case& c) {
  ModelConfig config = even_config(c.architecture);
  config.head_dim = c.head_dim;
  config.max_positions = 900;
  config.intermediate_sizes = {c.first_wide, 96};
  const ParameterLayout layout(config);
  auto tensors =
      std::make_shared<TensorMap>(save_parameters(layout, tiny_weights(layout, 7), DType::kF32));
  ModelBundle bundle;
  Json json = config.to_json();
  if (is_quantised(c.format)) {
    Rng rng(5);
    Json weights;
    for (const Parameter& p : layout.parameters()) {
      if (p.name.find("_proj") == std::string::npos || p.cols < 2) continue;
      QuantisedMatrix m = decode_cases::random_quantised(rng, c.format, p.rows, p.cols);
      if (c.pruned) decode_cases::prune_two_of_four(rng, m);
      add_quantised(*tensors, p.name, m);
      weights.set(p.name, weight_format_name(c.format));
    }
    Json own = json.find("fastserve") ? *json.find("fastserve") : Json();
    own.set("weights", weights);
    json.set("fastserve", own);
  }
  bundle.documents["config.json"] = json.dump();
  bundle.tensors = tensors;
  return bundle;
}

struct Answers {
  std::vector<float> logits;
  int64_t graphs = 0;
};

/// Logits of some steps of texts that stand at `starts`.
Answers answers(Device& device, const Case& c, StepKernels kernels, const std::vector<int>& starts,
                int steps = 4) {
  DecoderOptions options;
  options.kv = c.kv;
  options.weights = WeightFormat::kBFloat16;
  options.block_tokens = kBlockTokens;
  options.kv_blocks = 220;
  options.max_rows = 128;
  options.max_logits = 8;
  options.kernels = kernels;
  auto loaded = Decoder::load(device, bundle_of(c), options);
  REQUIRE_MESSAGE(loaded.ok(), loaded.error().message());
  Decoder& decoder = **loaded;
  Rng rng(3);
  const auto token = [&] { return static_cast<int32_t>(rng.below(72)); };
  std::vector<std::vector<int32_t>> blocks;
  int32_t next = 0;
  for (const int start : starts) {
    auto& own = blocks.emplace_back();
    for (int i = 0; i < start + steps; i += kBlockTokens) own.push_back(next++);
    for (int done = 0; done < start;) {
      const int rows = std::min(128, start - done);
      std::vector<int32_t> tokens;
      for (int i = 0; i < rows; ++i) tokens.push_back(token());
      const Segment segment{0, rows, done, own};
      REQUIRE(decoder.step(tokens, {&segment, 1}, {}).ok());
      done += rows;
    }
  }
  Answers all;
  for (int s = 0; s < steps; ++s) {
    std::vector<int32_t> tokens, wanted;
    std::vector<Segment> segments;
    for (size_t i = 0; i < starts.size(); ++i) {
      tokens.push_back(token());
      wanted.push_back(static_cast<int32_t>(i));
      segments.push_back({static_cast<int>(i), 1, starts[i] + s, blocks[i]});
    }
    const auto logits = decoder.step(tokens, segments, wanted);
    REQUIRE_MESSAGE(logits.ok(), logits.error().message());
    all.logits.insert(all.logits.end(), logits->begin(), logits->end());
  }
  all.graphs = decoder.graph_steps();
  return all;
}

/// Parts of a graph whose layers are one kernel, with embedding and a head of another format.
constexpr int64_t kFewParts = 3;

void check_same_bits(const Case& c, const std::vector<int>& starts,
                     simt::Options options = {.graph_parts = kFewParts}) {
  CAPTURE(c.text());
  const auto plain = emulated_gpu(), device = emulated_gpu(options);
  const Answers each = answers(*plain, c, StepKernels::kEach, starts);
  const Answers fused = answers(*device, c, StepKernels::kFused, starts);
  CHECK(each.logits == fused.logits);
  CHECK(fused.graphs == each.graphs);
  const Status status = device->sync();
  CHECK_MESSAGE(status.ok(), status.error().message());
}

}  // namespace

TEST_CASE("a decode step as one kernel has the bits that it has kernel by kernel") {
  for (const WeightFormat format : kFormats) check_same_bits({.format = format}, {5});
#if defined(__SANITIZE_THREAD__)
  return;  // each format has the same barriers
#endif
  for (const WeightFormat format : {WeightFormat::kInt8Row, WeightFormat::kInt8Group128})
    check_same_bits({.format = format, .pruned = true}, {5, 0});
  for (const Architecture architecture : kArchitectures)
    check_same_bits({.architecture = architecture}, {3, 17, 40});
}

TEST_CASE("attention inside of one kernel: heads, codes, several rows, and parts that are joined") {
  for (const int head_dim : {16, 80})
    for (const KvType kv : kTypes)
      check_same_bits({.format = WeightFormat::kInt8Group128, .kv = kv, .head_dim = head_dim},
                      {515, 12});
}

TEST_CASE("one kernel's bits do not depend on the order of its threads, blocks and copies") {
  const Case c{.format = WeightFormat::kInt8Group128, .first_wide = 1200};
  for (simt::Options options : unlike_orders()) {
    options.graph_parts = kFewParts;
    check_same_bits(c, {9, 30}, options);
  }
}

TEST_CASE("what one kernel does not do is started beside it") {
  // Neurons that are no multiple of four, heads whose rows are no whole 16 bytes, floats.
  check_same_bits({.first_wide = 149}, {5}, {});
  check_same_bits({.head_dim = 12}, {5, 6}, {});
  check_same_bits({.kv = KvType::kFloat32}, {5}, {});
  check_same_bits({}, {1, 2, 3, 4, 5}, {});
}

TEST_CASE("of both ways that which is faster is kept, and both are told") {
  const auto device = emulated_gpu();
  std::vector<std::string> told;
  device->set_graph_use(
      {true, Log([&](LogLevel, std::string_view line) { told.emplace_back(line); })});
  const Case c;
  const Answers measured = answers(*device, c, StepKernels::kMeasured, {5}, 6);
  CHECK(measured.logits == answers(*emulated_gpu(), c, StepKernels::kEach, {5}, 6).logits);
  CHECK(measured.graphs == 5);
  REQUIRE(told.size() == 2);
  CHECK(told[1].find("decode steps: ") == 0);
  CHECK(told[1].find(" ms kernel by kernel, ") != std::string::npos);
  CHECK(told[1].find(" ms as one kernel; from now on ") != std::string::npos);
}

}  // namespace fastserve::harness
