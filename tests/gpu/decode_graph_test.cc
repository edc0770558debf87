// Decode steps captured as graphs and drawn from on the device, beside steps that are not.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>

#include "gpu/gpu_device.h"
#include "gpu/simt/emulated_runtime.h"
#include "model/decoder.h"
#include "tests/transformer/tiny_models.h"

namespace fastserve {
namespace {

constexpr int kBlockTokens = 4;

std::unique_ptr<Device> whole_gpu(simt::Options options = {}) {
  options.own_memory = true;
  return gpu::make_gpu_device(simt::make_emulated_runtime(options));
}

struct Model {
  explicit Model(Architecture architecture) : config(tiny_config(architecture)) {
    config.max_positions = 400;
    const ParameterLayout layout(config);
    bundle = tiny_bundle(config, layout, tiny_weights(layout, 7));
  }
  std::unique_ptr<Decoder> load(Device& device, int graphs, int max_rows = 24,
                                KvType kv = KvType::kFloat16) const {
    DecoderOptions options;
    options.kv = kv;
    options.weights = WeightFormat::kBFloat16;
    options.kv_blocks = 160;
    options.block_tokens = kBlockTokens;
    options.max_rows = max_rows;
    options.max_logits = 12;
    options.graphs = graphs;
    auto decoder = Decoder::load(device, bundle, options);
    REQUIRE_MESSAGE(decoder.ok(), decoder.error().message());
    return std::move(*decoder);
  }
  ModelConfig config;
  ModelBundle bundle;
};

/// Some texts, each with blocks of its own, that grow a token a step.
struct Texts {
  Texts(const ModelConfig& config, std::vector<int> prompts) : rng(3), vocab(config.vocab_size) {
    int32_t next = 0;
    for (const int length : prompts) {
      auto& text = texts.emplace_back();
      for (int i = 0; i < length; ++i) text.push_back(token());
      auto& own = blocks.emplace_back();
      for (int i = 0; i < length + 60; i += kBlockTokens) own.push_back(next++);
      std::reverse(own.begin(), own.end());
      computed.push_back(0);
    }
  }
  int32_t token() { return static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab))); }

  struct Batch {
    std::vector<int32_t> tokens, wanted;
    std::vector<Segment> segments;
  };
  /// Up to `most` tokens of each of `which`; the last one is asked for.
  Batch batch(const std::vector<size_t>& which, int most) {
    Batch b;
    for (const size_t i : which) {
      const int rows = std::min(most, static_cast<int>(texts[i].size()) - computed[i]);
      const int first = static_cast<int>(b.tokens.size());
      const auto from = texts[i].begin() + computed[i];
      b.tokens.insert(b.tokens.end(), from, from + rows);
      b.segments.push_back({first, rows, computed[i], blocks[i]});
      b.wanted.push_back(first + rows - 1);
      computed[i] += rows;
    }
    return b;
  }
  Rng rng;
  int vocab;
  std::vector<std::vector<int32_t>> texts, blocks;
  std::vector<int> computed;
};

/// Which texts take part in each step: batches of many sizes, come back to.
const std::vector<std::vector<size_t>> kSteps = {{0, 1, 2}, {0, 1, 2}, {1}, {0, 1, 2}, {2, 0},
                                                 {1},       {0, 2},    {1}, {2, 1, 0}, {0, 1}};

/// Logits of prompts and some steps. With `interrupt` a long prompt comes in the middle.
std::vector<float> answers(const Model& model, Decoder& decoder, bool interrupt) {
  Texts texts(model.config, {7, 251, 12, 90});
  std::vector<float> all;
  const auto step = [&](const std::vector<size_t>& which, int most) {
    const Texts::Batch b = texts.batch(which, most);
    const auto logits = decoder.step(b.tokens, b.segments, b.wanted);
    REQUIRE_MESSAGE(logits.ok(), logits.error().message());
    all.insert(all.end(), logits->begin(), logits->end());
  };
  for (const size_t i : {0, 1, 2})
    while (texts.computed[i] < static_cast<int>(texts.texts[i].size())) step({i}, 9);
  for (size_t s = 0; s < 2 * kSteps.size(); ++s) {
    const std::vector<size_t>& which = kSteps[s % kSteps.size()];
    for (const size_t i : which) texts.texts[i].push_back(texts.token());
    step(which, 1);
    if (interrupt && s == 10)
      while (texts.computed[3] < 90) step({3}, 24);
  }
  return all;
}

}  // namespace

TEST_CASE("a decode step has the same bits as a graph and without, in any order of threads") {
  for (const Architecture architecture : kArchitectures) {
    CAPTURE(architecture_name(architecture));
    const Model model(architecture);
    const auto device = whole_gpu();
    const auto plain = model.load(*device, 0), graphs = model.load(*device, 8);
    const std::vector<float> expected = answers(model, *plain, true);
    CHECK(plain->graph_steps() == 0);
    CHECK(answers(model, *graphs, true) == expected);
    CHECK(graphs->graph_steps() >= 10);
    if (architecture != Architecture::kQwen3) continue;
    for (const simt::Options& order :
         {simt::Options{.order = simt::Order::kShuffled, .seed = 5, .os_threads = 2},
          simt::Options{.order = simt::Order::kReverse, .early_copies = true}}) {
      const auto other = whole_gpu(order);
      CHECK(answers(model, *model.load(*other, 8), true) == expected);
    }
  }
}

TEST_CASE("only so many graphs are kept, and scratch memory that grows makes them anew") {
  const Model model(Architecture::kLlama);
  const auto device = whole_gpu();
  const std::vector<float> expected = answers(model, *model.load(*device, 0), true);
  for (const int most : {1, 2}) {
    const auto few = model.load(*device, most);
    CHECK(answers(model, *few, true) == expected);
    CHECK(few->graph_steps() < 10);
  }
}

TEST_CASE(
    "where no graph can be had decode steps go on without, in the same bits, and it is said once") {
  const Model model(Architecture::kLlama);
  const auto roomy = whole_gpu(), full = whole_gpu({.graph_parts = 9});
  std::vector<std::string> told;
  const auto tell = [&](Device& device) {
    device.set_graph_use(
        {true, Log([&](LogLevel, std::string_view line) { told.emplace_back(line); })});
  };
  tell(*full);
  const std::vector<float> expected = answers(model, *model.load(*roomy, 0), true);
  const auto decoder = model.load(*full, 8);
  CHECK(answers(model, *decoder, true) == expected);
  CHECK(decoder->graph_steps() == 0);
  CHECK(answers(model, *model.load(*full, 8), true) == expected);
  REQUIRE(told.size() == 1);
  CHECK(told[0].find("decode steps start their kernels one by one, since no graph can be had") ==
        0);
  tell(*roomy);
  told.clear();
  for (int turn = 0; turn < 2; ++turn) answers(model, *model.load(*roomy, 8), true);
  CHECK(told == std::vector<std::string>{"decode steps are started as graphs"});
}

TEST_CASE("tokens drawn on the device are those of the logits, in a graph or not") {
  const Model model(Architecture::kQwen3);
  const auto device = whole_gpu();
  std::vector<int32_t> first;
  for (const int graphs : {0, 8}) {
    const auto decoder = model.load(*device, graphs);
    REQUIRE(decoder->draws());
    Texts texts(model.config, {7, 5, 12});
    std::vector<int32_t> all;
    for (int s = 0; s < 8; ++s) {
      const Texts::Batch b = texts.batch({0, 1, 2}, 24);
      // Greedy, certain by top-k of one, and a draw.
      const std::vector<TokenDraw> draws = {
          {}, {.temperature = 1, .top_k = 1, .uniform = 0.99}, {.temperature = 1, .uniform = 0.5}};
      const auto tokens = decoder->step_and_draw(b.tokens, b.segments, b.wanted, draws);
      REQUIRE_MESSAGE(tokens.ok(), tokens.error().message());
      const std::vector<int32_t> drawn(tokens->begin(), tokens->end());
      for (const size_t i : {0, 1}) {
        const auto logits = decoder->logits_of(i);
        REQUIRE(logits.ok());
        CHECK(drawn[i] == std::max_element(logits->begin(), logits->end()) - logits->begin());
      }
      for (size_t i = 0; i < 3; ++i) texts.texts[i].push_back(drawn[i]);
      all.insert(all.end(), drawn.begin(), drawn.end());
    }
    CHECK(decoder->graph_steps() == (graphs > 0 ? 6 : 0));
    if (first.empty()) first = all;
    CHECK(all == first);
  }
}

TEST_CASE("a step that is begun before the last one's tokens are known has them all the same") {
  const Model model(Architecture::kQwen3);
  const auto device = whole_gpu();
  // Which of the texts go on in each step.
  const std::vector<std::vector<size_t>> steps = {{0, 1, 2}, {0, 1, 2}, {2, 0}, {0}, {0}, {0}};
  const auto draws_of = [](size_t texts) {
    std::vector<TokenDraw> draws(texts, {.temperature = 1, .uniform = 0.5});
    draws[0] = {};
    return draws;
  };
  std::vector<std::vector<int32_t>> expected;
  for (const int graphs : {0, 8}) {
    for (const bool ahead : {false, true}) {
      CAPTURE(graphs);
      CAPTURE(ahead);
      const auto decoder = model.load(*device, graphs);
      CHECK(decoder->draws_ahead());
      std::vector<std::vector<int32_t>> got;
      for (int turn = 0; turn < 3; ++turn) {  // at once, captured, from the graph
        Texts texts(model.config, {7, 5, 12});
        const auto take = [&](const std::vector<size_t>& which) {
          const auto drawn = decoder->drawn();
          REQUIRE_MESSAGE(drawn.ok(), drawn.error().message());
          REQUIRE(drawn->size() == which.size());
          got.emplace_back(drawn->begin(), drawn->end());
          if (!ahead)
            for (size_t i = 0; i < which.size(); ++i)
              texts.texts[which[i]].push_back(got.back()[i]);
        };
        for (size_t s = 0; s < steps.size(); ++s) {
          const std::vector<size_t>& which = steps[s];
          if (ahead && s > 0)
            for (const size_t text : which) {
              const auto row = std::ranges::find(steps[s - 1], text) - steps[s - 1].begin();
              texts.texts[text].push_back(~static_cast<int32_t>(row));
            }
          const Texts::Batch b = texts.batch(which, 24);
          const auto draws = draws_of(which.size());
          REQUIRE(decoder->begin_drawing(b.tokens, b.segments, b.wanted, draws).ok());
          if (!ahead)
            take(which);
          else if (s > 0)
            take(steps[s - 1]);
        }
        if (ahead) take(steps.back());
      }
      CHECK(decoder->graph_steps() > (graphs > 0 ? 5 : -1));
      if (expected.empty()) expected = got;
      CHECK(got == expected);
    }
  }
}

TEST_CASE("blocks that went to the host and came back elsewhere hold what they held") {
  for (const KvType type : {KvType::kFloat16, KvType::kFloat32, KvType::kInt8}) {
    const Model model(Architecture::kQwen3);
    const auto device = whole_gpu();
    std::vector<float> expected;
    for (const bool moved : {false, true}) {
      const auto decoder = model.load(*device, 0, 24, type);
      CHECK(decoder->host_places() == 160);
      Texts texts(model.config, {11, 70});
      std::vector<float> all;
      const auto step = [&](size_t i, int most) {
        const Texts::Batch b = texts.batch({i}, most);
        const auto logits = decoder->step(b.tokens, b.segments, b.wanted);
        REQUIRE(logits.ok());
        all.insert(all.end(), logits->begin(), logits->end());
      };
      step(0, 24);
      std::vector<BlockMove> out, back;
      for (int32_t i = 0; i < 3; ++i) {
        out.push_back({true, texts.blocks[0][size_t(i)], i < 2 ? 150 + i : 3});
        back.push_back({false, 140 + i, out.back().place});
      }
      if (moved) {
        REQUIRE(decoder->move_blocks(out).ok());
        std::swap(texts.blocks[0], texts.blocks[1]);  // the other text writes over them
      }
      for (int n = 0; n < 3; ++n) step(1, 24);
      if (moved) {
        REQUIRE(decoder->move_blocks(back).ok());
        texts.blocks[0] = {140, 141, 142};
      }
      texts.texts[0].push_back(texts.token());
      step(0, 1);
      if (!moved) expected = all;
      CHECK(all == expected);
    }
  }
}

TEST_CASE("a card that is lost while steps run as graphs says so from every later step") {
  const Model model(Architecture::kLlama);
  for (const int64_t after : {60, 90, 140, 200}) {
    simt::Options options;
    options.launches = after;
    const auto device = whole_gpu(options);
    const auto decoder = model.load(*device, 8);
    Texts texts(model.config, {3, 4});
    int failed = 0;
    for (int s = 0; s < 16; ++s) {
      const Texts::Batch b = texts.batch({0, 1}, 24);
      const auto logits = decoder->step(b.tokens, b.segments, b.wanted);
      if (!logits.ok()) {
        ++failed;
        CHECK(logits.error().code == ErrorCode::kUnavailable);
      } else {
        CHECK(failed == 0);
      }
      for (const size_t i : {0, 1}) texts.texts[i].push_back(texts.token());
    }
    CHECK(failed > 0);
  }
}

}  // namespace fastserve
