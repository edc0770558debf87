#include "train/weight_codec.h"

#include <doctest/doctest.h>

#include <cstring>

#include "base/half.h"
#include "cpu/cpu_device.h"
#include "slices.h"
#include "train/device_backend.h"

using namespace fastserve;

namespace {

using Frame = std::vector<std::byte>;

WeightsBack back(const char* name) { return WeightsBack::parse(name).value(); }

ModelConfig small_model(bool tied) {
  ModelConfig model;
  model.vocab_size = 70;
  model.hidden_size = 64;
  model.layers = 2;
  model.heads = model.kv_heads = 4;
  model.head_dim = 16;
  model.intermediate_size = 130;
  model.max_positions = 32;
  model.rope = Rope{};
  model.tied_embeddings = tied;
  return model;
}

struct Bits {
  double loss;
  std::vector<float> gradient;
};

/// Loss and gradient of a microbatch, computed with these weights.
Bits computed(TrainBackend& backend, std::span<const float> weights) {
  std::copy(weights.begin(), weights.end(), backend.masters().begin());
  backend.refresh_all();
  Microbatch batch;
  batch.starts = {0, 24};
  for (int i = 0; i < 24; i++) {
    batch.tokens.push_back(i * 7 % 70);
    batch.targets.push_back(i * 11 % 70);
  }
  Bits bits{0, std::vector<float>(backend.elements())};
  auto source = backend.make_source(1, 24).value();
  bits.loss = source->run(batch, 1.0f / 24, bits.gradient.data()).value();
  return bits;
}

bool same(const Bits& a, const Bits& b) {
  return a.loss == b.loss &&
         std::memcmp(a.gradient.data(), b.gradient.data(), a.gradient.size() * 4) == 0;
}

std::vector<float> some_weights(const std::vector<ParameterTile>& tiles, uint64_t seed) {
  std::vector<float> weights = made_up_gradient(tiles, seed);
  for (float& weight : weights) weight *= 10;
  return weights;
}

}  // namespace

TEST_CASE("bf16 weights are the same bits to a job that computes in bf16, tied or not") {
  for (const bool tied : {true, false})
    for (const Isa isa : {Isa::kPortable, best_isa()}) {
      const ModelConfig model = small_model(tied);
      const ParameterLayout layout(model);
      auto backend = make_device_backend(model, Precision::kBFloat16, [&](int lanes) {
                       return make_cpu_device({lanes, isa});
                     }).value();
      std::vector<float> masters(layout.elements());
      initialise_parameters(model, layout, 5, masters);
      const auto& tiles = backend->tiles();
      const WeightCodec codec(back("bf16"), tiles, only_multiplied(layout, tiles));
      const auto slice = std::span(masters).subspan(codec.begin(), codec.elements());
      WeightShadow shadow = codec.shadow_of(slice);
      Frame frame(codec.encoded_bytes());
      REQUIRE(codec.encode(slice, shadow, frame).ok());
      std::vector<float> received(masters.size());
      uint64_t version = 0;
      REQUIRE(
          codec.decode(frame, std::span(received).subspan(codec.begin(), codec.elements()), version)
              .ok());
      CHECK(version == 1);
      CHECK(received != masters);
      CHECK(frame.size() < masters.size() * 4 * 65 / 100);
      const Bits expected = computed(*backend, masters);
      CHECK(same(computed(*backend, received), expected));
      // The embedding is looked up in fp32: rounded as well, it would not be the same.
      const Block& table = layout.token_embedding();
      for (size_t i = table.offset; i < table.offset + table.size(); i++)
        received[i] = to_float(to_bfloat16(received[i]));
      CHECK_FALSE(same(computed(*backend, received), expected));
    }
}

TEST_CASE("exact weights arrive in every bit") {
  const auto tiles = made_up_tiles();
  const std::vector<float> masters = some_weights(tiles, 1);
  const WeightCodec codec(back("exact"), tiles, {});
  WeightShadow shadow = codec.shadow_of(masters, 41);
  Frame frame(codec.encoded_bytes());
  REQUIRE(codec.encode(masters, shadow, frame).ok());
  std::vector<float> received(masters.size());
  uint64_t version = 7;  // whatever was missed: the frame is whole
  REQUIRE(codec.decode(frame, received, version).ok());
  CHECK(received == masters);
  CHECK(version == 42);
  CHECK(shadow.bytes() == 0);
}

TEST_CASE("after each change of weights all nodes hold the same bits, ever nearer to the masters") {
  const auto tiles = made_up_tiles();
  for (const char* name : {"int8-delta", "sign-delta", "topk-delta:0.1", "lowrank-delta:8"}) {
    CAPTURE(name);
    const WeightCodec codec(back(name), tiles, {});
    std::vector<float> masters = some_weights(tiles, 2);
    WeightShadow shadow = codec.shadow_of(masters);
    std::vector<float> node = masters, late(masters.size());
    uint64_t version = 0, late_version = 0;
    Frame frame(codec.encoded_bytes()), whole(codec.whole_bytes());
    const auto send = [&] {
      REQUIRE(codec.encode(masters, shadow, frame).ok());
      REQUIRE(codec.decode(frame, node, version).ok());
      CHECK(std::memcmp(node.data(), shadow.weights.data(), node.size() * 4) == 0);
    };
    for (uint64_t step = 0; step < 20; step++) {
      const std::vector<float> change = made_up_gradient(tiles, 50 + step);
      for (size_t i = 0; i < masters.size(); i++) masters[i] += change[i] * 0.1f;
      send();
      if (step == 10) {  // one joins
        codec.encode_whole(shadow, whole);
        REQUIRE(codec.decode(whole, late, late_version).ok());
      } else if (step > 10) {
        REQUIRE(codec.decode(frame, late, late_version).ok());
      }
    }
    CHECK(late == node);
    CHECK(late_version == version);
    const double behind = distance(node, masters);
    for (int step = 0; step < 40; step++) send();  // the masters stand still
    CHECK(distance(node, masters) < 0.5 * behind);
  }
}

TEST_CASE("a node that missed a change is told to ask for the whole, and keeps what it has") {
  const auto tiles = made_up_tiles();
  const WeightCodec codec(back("int8-delta"), tiles, {});
  const std::vector<float> masters = some_weights(tiles, 3);
  WeightShadow shadow = codec.shadow_of(made_up_gradient(tiles, 4));
  Frame frame(codec.encoded_bytes());
  REQUIRE(codec.encode(masters, shadow, frame).ok());
  REQUIRE(codec.encode(masters, shadow, frame).ok());
  std::vector<float> node = masters;
  uint64_t version = 0;
  const Status refused = codec.decode(frame, node, version);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::kUnavailable);
  CHECK(refused.error().hint == "ask for the whole weights");
  CHECK(node == masters);
  CHECK(version == 0);
}

TEST_CASE("frames of weights that are damaged are refused, and change nothing") {
  const auto tiles = made_up_tiles();
  const std::vector<float> masters = some_weights(tiles, 5);
  for (const char* name : {"exact", "bf16", "int8-delta"}) {
    CAPTURE(name);
    const WeightCodec codec(back(name), tiles, std::vector<bool>(tiles.size(), true));
    WeightShadow shadow = codec.shadow_of(masters);
    Frame good(codec.encoded_bytes());
    REQUIRE(codec.encode(masters, shadow, good).ok());
    std::vector<float> node(masters.size());
    uint64_t version = 0;
    const auto refused = [&](const Frame& frame) {
      const Status status = codec.decode(frame, node, version);
      return !status.ok() && status.error().code == ErrorCode::kCorrupt && version == 0 &&
             norm(node) == 0;
    };
    for (const size_t at : {0u, 4u, 5u, 16u, 20u}) {
      Frame frame = good;
      frame[at] ^= std::byte{0x40};
      CHECK(refused(frame));
    }
    CHECK(refused(Frame(good.begin(), good.end() - 1)));
    CHECK(refused(Frame(3)));
    if (codec.format().kind == WeightsBack::Kind::kExact) continue;
    Frame frame = good;  // NaN in the first value, or in the delta's header
    frame[24] = frame[25] = std::byte{0xff};
    CHECK(refused(frame));
    std::vector<float> broken = masters;
    broken[6144] = std::numeric_limits<float>::infinity();
    CHECK_FALSE(codec.encode(broken, shadow, good).ok());
    CHECK(shadow.version == 1);
  }
}
