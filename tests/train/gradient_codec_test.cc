#include "train/gradient_codec.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>

#include "base/half.h"
#include "base/hash.h"
#include "slices.h"

using namespace fastserve;

namespace {

using Frame = std::vector<std::byte>;

GradientFormat format(const char* name) { return GradientFormat::parse(name).value(); }

const std::vector<const char*> kAll = {"fp32",       "bf16",     "fp16", "int8",      "topk:0.01",
                                       "topk:0.125", "topk:0.5", "sign", "lowrank:2", "lowrank:8"};
const std::vector<const char*> kWithResidual = {"int8", "topk:0.01", "topk:0.25",
                                                "sign", "lowrank:2", "lowrank:8"};

Frame encoded(const GradientCodec& codec, std::span<const float> values, ErrorFeedback& feedback) {
  Frame frame(codec.encoded_bytes());
  REQUIRE(codec.encode(values, feedback, frame).ok());
  return frame;
}

std::vector<float> decoded(const GradientCodec& codec, const Frame& frame) {
  std::vector<float> values(codec.elements(), 7.0f);
  const Status status = codec.decode(frame, values);
  REQUIRE_MESSAGE(status.ok(), status.error().message());
  return values;
}

/// Made without a function that machines round in their own way.
std::vector<float> exact_gradient(size_t elements, uint64_t seed) {
  std::vector<float> values(elements);
  for (size_t i = 0; i < elements; i++) {
    const uint64_t random = mix64(seed * elements + i);
    values[i] = std::ldexp(static_cast<float>(static_cast<int32_t>(random >> 40) - (1 << 23)),
                           -30 - static_cast<int>(random % 16));
  }
  return values;
}

std::vector<float> round_trip(const GradientCodec& codec, std::span<const float> values) {
  ErrorFeedback feedback;
  return decoded(codec, encoded(codec, values, feedback));
}

}  // namespace

TEST_CASE("fp32 carries every bit, of what is not a number as well") {
  const auto tiles = made_up_tiles();
  std::vector<float> values = made_up_gradient(tiles, 1);
  values[17] = std::numeric_limits<float>::quiet_NaN();
  values[18] = -std::numeric_limits<float>::infinity();
  const auto back = round_trip(GradientCodec(format("fp32"), tiles), values);
  CHECK(std::memcmp(back.data(), values.data(), values.size() * 4) == 0);
}

TEST_CASE("bf16 and fp16 round each value to the nearest they have") {
  const auto tiles = made_up_tiles();
  const std::vector<float> values = made_up_gradient(tiles, 2);
  const auto bfloats = round_trip(GradientCodec(format("bf16"), tiles), values);
  for (size_t i = 0; i < values.size(); i++) CHECK(bfloats[i] == to_float(to_bfloat16(values[i])));
  const auto halves = round_trip(GradientCodec(format("fp16"), tiles), values);
  const float largest =
      std::abs(*std::max_element(values.begin(), values.begin() + 4096,
                                 [](float a, float b) { return std::abs(a) < std::abs(b); }));
  const float scale = std::exp2(14 - std::floor(std::log2(largest)));
  for (size_t i = 0; i < 4096; i++)
    CHECK(halves[i] == to_float(to_float16(values[i] * scale)) / scale);
}

TEST_CASE("fp16 neither overflows nor vanishes, however large or small a gradient is") {
  const auto tiles = made_up_tiles();
  const GradientCodec codec(format("fp16"), tiles);
  for (const float scale : {1e30f, 1e25f, 1.0f, 1e-20f, 1e-30f}) {
    std::vector<float> values = made_up_gradient(tiles, 3);
    for (float& value : values) value *= scale;
    const auto back = round_trip(codec, values);
    CHECK(distance(values, back) < 0x1.0p-11 * norm(values));
  }
  const std::vector<float> none(codec.elements());
  CHECK(norm(round_trip(codec, none)) == 0);
}

TEST_CASE("int8 errs by half a step of its 256 values, sign by their magnitudes") {
  const auto tiles = made_up_tiles();
  const std::vector<float> values = made_up_gradient(tiles, 4);
  const auto bytes = round_trip(GradientCodec(format("int8"), tiles), values);
  const auto signs = round_trip(GradientCodec(format("sign"), tiles), values);
  for (size_t at = 0; at < 12288; at += 256) {
    float largest = 0;
    for (size_t i = at; i < at + 256; i++) largest = std::max(largest, std::abs(values[i]));
    for (size_t i = at; i < at + 256; i++)
      CHECK(std::abs(bytes[i] - values[i]) <= largest / 127 * 0.5001f);
  }
  for (size_t at = 0; at < 4096; at += 512) {
    double mean = 0;
    for (size_t i = at; i < at + 512; i++) mean += double(std::abs(values[i])) / 512;
    for (size_t i = at; i < at + 512; i++) {
      CHECK(std::signbit(signs[i]) == std::signbit(values[i]));
      CHECK(std::abs(signs[i]) == doctest::Approx(mean).epsilon(0.004));
    }
  }
}

TEST_CASE("topk sends the largest of each 4096, of equals the first") {
  const auto tiles = made_up_tiles();
  const std::vector<float> values = made_up_gradient(tiles, 5);
  for (const char* name : {"topk:0.01", "topk:0.125", "topk:0.5"}) {
    const GradientCodec codec(format(name), tiles);
    const auto back = round_trip(codec, values);
    std::vector<float> sizes(values.begin(), values.begin() + 4096);
    for (float& size : sizes) size = std::abs(size);
    std::sort(sizes.rbegin(), sizes.rend());
    const float least = sizes[static_cast<size_t>(codec.format().kept) - 1];
    for (size_t i = 0; i < 4096; i++) {
      const bool sent = std::abs(values[i]) >= least;
      CHECK(back[i] == (sent ? to_float(to_bfloat16(values[i])) : 0.0f));
    }
  }
  const std::vector<ParameterTile> one = {{0, 1000, false, -1, 0, 1}};
  std::vector<float> equal(1000, -0.5f);
  equal[900] = 2;
  const auto back = round_trip(GradientCodec(format("topk:0.01"), one), equal);  // 11 of them
  CHECK(back[900] == 2);
  for (size_t i = 0; i < 1000; i++) CHECK((back[i] != 0) == (i < 10 || i == 900));
}

TEST_CASE("a matrix of low rank arrives whole, and a direction that was empty is found again") {
  const std::vector<ParameterTile> tiles = {{0, 64 * 80, true, 0, 0, 64},
                                            {5120, 64 * 80, true, 0, 64, 64}};
  const GradientCodec codec(format("lowrank:3"), tiles);
  const auto outer = [&](std::initializer_list<uint64_t> seeds) {
    std::vector<float> values(codec.elements());
    for (const uint64_t seed : seeds) {
      Rng left(seed), right(seed + 1000);
      std::vector<double> row(80);
      for (double& value : row) value = right.normal();
      for (size_t i = 0; i < 128; i++) {
        const double factor = left.normal();
        for (size_t j = 0; j < 80; j++) values[i * 80 + j] += static_cast<float>(factor * row[j]);
      }
    }
    return values;
  };
  ErrorFeedback feedback;
  for (const auto& values : {outer({1, 2, 3}), outer({1}), outer({4, 5, 6})}) {
    const auto back = decoded(codec, encoded(codec, values, feedback));
    CHECK(distance(values, back) < 0.01 * norm(values));
    feedback.residual.clear();
  }
}

TEST_CASE("what a frame leaves out comes with those after it") {
  const auto tiles = made_up_tiles();
  const std::vector<float> values = made_up_gradient(tiles, 6);
  constexpr int kSteps = 200;
  for (const char* name : kWithResidual) {
    CAPTURE(name);
    const GradientCodec codec(format(name), tiles);
    ErrorFeedback feedback;
    std::vector<float> sum(values.size()), all(values.size());
    double owed_half_way = 0;
    for (int step = 1; step <= kSteps; step++) {
      const auto back = decoded(codec, encoded(codec, values, feedback));
      for (size_t i = 0; i < sum.size(); i++) sum[i] += back[i];
      if (step == kSteps / 2) owed_half_way = norm(feedback.residual);
    }
    for (size_t i = 0; i < all.size(); i++) all[i] = values[i] * kSteps - feedback.residual[i];
    CHECK(distance(sum, all) < 1e-5 * norm(all));          // nothing is lost
    CHECK(norm(feedback.residual) < 1.7 * owed_half_way);  // nor piles up: that would be 2
    CHECK(feedback.bytes() <= codec.feedback_bytes());
    CHECK(feedback.bytes() >= codec.elements() * 4);
    feedback.drop();
    CHECK(feedback.bytes() == 0);
  }
  for (const char* name : {"fp32", "bf16", "fp16"}) {
    const GradientCodec codec(format(name), tiles);
    ErrorFeedback feedback;
    encoded(codec, values, feedback);
    CHECK(feedback.bytes() == 0);
    CHECK(codec.feedback_bytes() == 0);
  }
}

TEST_CASE("frames are the same bytes on every machine, twice in a row") {
  // Recorded on x86-64; another machine or compiler that disagrees could not train beside it.
  const std::map<std::string, uint64_t> expected = {
      {"fp32", 4764946426320365031u},      {"bf16", 10778083479717746897u},
      {"fp16", 16794887012973905470u},     {"int8", 16779997662319420242u},
      {"topk:0.01", 1666186801880238479u}, {"topk:0.125", 15104562412250758878u},
      {"topk:0.5", 557322976225224024u},   {"sign", 464550494581144376u},
      {"lowrank:2", 7866078661129712382u}, {"lowrank:8", 16553932275613762110u}};
  const auto tiles = made_up_tiles();
  for (const char* name : kAll) {
    CAPTURE(name);
    const GradientCodec codec(format(name), tiles);
    ErrorFeedback feedback;
    uint64_t hash = 0;
    for (uint64_t step = 0; step < 3; step++) {
      const std::vector<float> values = exact_gradient(codec.elements(), step);
      ErrorFeedback copy = feedback;
      const Frame frame = encoded(codec, values, feedback);
      CHECK(encoded(codec, values, copy) == frame);
      CHECK(copy.residual == feedback.residual);
      const auto back = decoded(codec, frame);
      hash = hash64(frame, hash64(std::as_bytes(std::span(back)), hash));
    }
    CHECK(hash == expected.at(name));
  }
}

TEST_CASE("a tile is the same bits in any slice, but for those of low rank") {
  const auto tiles = made_up_tiles();
  const std::vector<float> values = made_up_gradient(tiles, 7);
  for (const char* name : kAll) {
    if (format(name).kind == GradientKind::kLowRank) continue;
    CAPTURE(name);
    const auto whole = round_trip(GradientCodec(format(name), tiles), values);
    for (size_t first = 0; first < tiles.size(); first += 2) {
      const auto some = std::span(tiles).subspan(first, std::min<size_t>(2, tiles.size() - first));
      const GradientCodec codec(format(name), some);
      const size_t from = codec.begin() - tiles.front().offset;
      const auto part = round_trip(codec, std::span(values).subspan(from, codec.elements()));
      CHECK(std::memcmp(part.data(), whole.data() + from, part.size() * 4) == 0);
    }
  }
}

TEST_CASE("gaps between tiles are not sent and read as zero") {
  const auto tiles = made_up_tiles();
  std::vector<float> values = made_up_gradient(tiles, 8);
  values[14405] = 3;  // between the vector and the table
  for (const char* name : kAll) {
    CAPTURE(name);
    CHECK(round_trip(GradientCodec(format(name), tiles), values)[14405] == 0);
  }
}

TEST_CASE("a value that is not finite is refused with its tile and element, and changes nothing") {
  const auto tiles = made_up_tiles();
  const std::vector<float> good = made_up_gradient(tiles, 9);
  for (const char* name : kAll) {
    if (format(name).kind == GradientKind::kFloat32) continue;
    CAPTURE(name);
    const GradientCodec codec(format(name), tiles);
    ErrorFeedback feedback;
    encoded(codec, good, feedback);
    const ErrorFeedback before = feedback;
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(),
                            -std::numeric_limits<float>::infinity(), 1e37f}) {
      std::vector<float> values = good;
      values[7000] = bad;
      Frame frame(codec.encoded_bytes());
      const Status refused = codec.encode(values, feedback, frame);
      REQUIRE_FALSE(refused.ok());
      CHECK(refused.error().code == ErrorCode::kInvalidArgument);
      CHECK(refused.error().message().find("element 7032 (tile 1 of the slice, its element 856)") !=
            std::string::npos);
      CHECK(feedback.residual == before.residual);
      CHECK(feedback.basis == before.basis);
      // It can be sent as it is instead.
      Frame exact(codec.exact_bytes());
      codec.encode_exact(values, exact);
      const auto back = decoded(codec, exact);
      CHECK(std::memcmp(&back[7000], &bad, 4) == 0);
    }
  }
}

TEST_CASE("a frame that was dropped is taken back into what is owed") {
  const auto tiles = made_up_tiles();
  for (const char* name : kWithResidual) {
    CAPTURE(name);
    const GradientCodec codec(format(name), tiles);
    ErrorFeedback feedback;
    encoded(codec, made_up_gradient(tiles, 10), feedback);
    const std::vector<float> before = feedback.residual;
    const std::vector<float> values = made_up_gradient(tiles, 11);
    const Frame frame = encoded(codec, values, feedback);
    CHECK(distance(feedback.residual, before) > 1e-4 * norm(before));
    REQUIRE(codec.take_back(values, frame, feedback).ok());
    CHECK(distance(feedback.residual, before) < 1e-6 * (norm(values) + norm(before)));
  }
}

TEST_CASE("what is owed follows the loss scale") {
  ErrorFeedback feedback{{1, -2, 3}, {}, 65536};
  feedback.match_scale(32768);
  CHECK(feedback.residual == std::vector<float>{0.5, -1, 1.5});
  feedback.match_scale(65536);
  CHECK(feedback.residual == std::vector<float>{1, -2, 3});
}

TEST_CASE("feedback of another slice is refused") {
  const auto tiles = made_up_tiles();
  const GradientCodec codec(format("lowrank:2"), tiles);
  const std::vector<float> values = made_up_gradient(tiles, 12);
  Frame frame(codec.encoded_bytes());
  ErrorFeedback other{{1, 2, 3}, {}, 1};
  CHECK(codec.encode(values, other, frame).error().hint == "drop it");
  ErrorFeedback broken{{}, {1, 2, 3}, 1};
  CHECK(codec.encode(values, broken, frame).error().hint == "drop it");
}
