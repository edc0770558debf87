// Names of forms, and frames from outside.
#include <doctest/doctest.h>

#include <cstring>

#include "base/rng.h"
#include "slices.h"
#include "train/gradient_codec.h"

using namespace fastserve;

namespace {

using Frame = std::vector<std::byte>;

/// One tile of 4096 values, 64 x 64.
const std::vector<ParameterTile> kTile = {{0, 4096, true, 0, 0, 64}};
constexpr size_t kHeader = 24;

GradientCodec codec_of(const char* name, const std::vector<ParameterTile>& tiles = kTile) {
  return {GradientFormat::parse(name).value(), tiles};
}

Frame frame_of(const GradientCodec& codec, const std::vector<ParameterTile>& tiles = kTile) {
  ErrorFeedback feedback;
  Frame frame(codec.encoded_bytes());
  REQUIRE(codec.encode(made_up_gradient(tiles, 1), feedback, frame).ok());
  return frame;
}

std::string refusal(const GradientCodec& codec, const Frame& frame) {
  std::vector<float> values(codec.elements());
  const Status status = codec.decode(frame, values);
  if (status.ok()) return "";
  CHECK(status.error().code == ErrorCode::kCorrupt);
  return status.error().message();
}

void put(Frame& frame, size_t at, std::initializer_list<int> bytes) {
  for (const int byte : bytes) frame.at(at++) = static_cast<std::byte>(byte);
}

bool says(const std::string& message, const char* what) {
  return message.find(what) != std::string::npos;
}

}  // namespace

TEST_CASE("a user names a form of gradients, and reads the same name again") {
  for (const char* name :
       {"fp32", "bf16", "fp16", "int8", "topk:0.25", "topk:0.5", "sign", "lowrank:1", "lowrank:64"})
    CHECK(GradientFormat::parse(name).value().text() == name);
  CHECK(GradientFormat::parse("topk:0.01").value().kept == 41);
  CHECK(GradientFormat::parse("topk:0.0000001").value().kept == 1);
  const auto small = GradientFormat::parse("topk:0.01").value();
  CHECK(GradientFormat::parse(small.text()).value() == small);
  CHECK(GradientFormat() == GradientFormat::parse("fp32").value());
}

TEST_CASE("a form of gradients that is none is refused with those there are") {
  const auto hint = [](const char* name) { return GradientFormat::parse(name).error().hint; };
  for (const char* name : {"", "fp8", "BF16", "bf16:2", "sign:", "top-k", "int8-delta"})
    CHECK(hint(name) ==
          "choose one of fp32, bf16, fp16, int8, topk:FRACTION, sign or lowrank:RANK");
  for (const char* name :
       {"topk", "topk:", "topk:0", "topk:-1", "topk:0.51", "topk:nan", "topk:0.1x", "topk:1e999"})
    CHECK(hint(name) == "topk:0.01 sends one value in a hundred");
  for (const char* name : {"lowrank", "lowrank:0", "lowrank:65", "lowrank:4.5", "lowrank:-2",
                           "lowrank:99999999999999"})
    CHECK(hint(name) == "lowrank:4 is a usual choice");
}

TEST_CASE("a user names how weights come back, and one that is none is refused") {
  for (const char* name :
       {"exact", "bf16", "int8-delta", "sign-delta", "topk-delta:0.25", "lowrank-delta:4"})
    CHECK(WeightsBack::parse(name).value().text() == name);
  for (const char* name :
       {"", "fp32", "fp32-delta", "bf16-delta", "int8", "delta", "-delta", "exact-delta", "bf16:1"})
    CHECK(says(WeightsBack::parse(name).error().hint, "choose one of exact, bf16, int8-delta"));
  CHECK(says(WeightsBack::parse("topk-delta:2").error().message(), "up to 0.5"));
  CHECK(WeightsBack::parse("exact").value().exact_for(Precision::kFloat32));
  CHECK(WeightsBack::parse("bf16").value().exact_for(Precision::kBFloat16));
  CHECK_FALSE(WeightsBack::parse("bf16").value().exact_for(Precision::kFloat16));
  CHECK_FALSE(WeightsBack::parse("int8-delta").value().exact_for(Precision::kBFloat16));
}

TEST_CASE("a frame of another form, slice or length is refused") {
  const GradientCodec codec = codec_of("int8");
  const Frame good = frame_of(codec);
  CHECK(refusal(codec, good) == "");
  CHECK(says(refusal(codec, {}), "has 0 bytes"));
  CHECK(says(refusal(codec, Frame(good.begin(), good.end() - 1)), "bytes, and"));
  Frame longer = good;
  longer.push_back({});
  CHECK(says(refusal(codec, longer), "bytes, and"));
  Frame magic = good;
  put(magic, 0, {'G'});
  CHECK(says(refusal(codec, magic), "does not begin as one"));
  CHECK(says(refusal(codec, frame_of(codec_of("sign"))), "is of kind 5 (0), and int8 is expected"));
  CHECK(says(refusal(codec_of("topk:0.25"), frame_of(codec_of("topk:0.125"))),
             "is of kind 4 (512), and topk:0.25 is expected"));
  const std::vector<ParameterTile> later = {{4096, 4096, true, 0, 0, 64}};
  CHECK(says(refusal(codec_of("int8", later), good), "4096 values from 0 on, and is for 4096"));
  // A frame that says fp32 must be as long as one.
  put(magic = good, 4, {0});
  CHECK(says(refusal(codec, magic), "and 16408 are expected"));
}

TEST_CASE("values that no sender writes are refused") {
  const auto broken = [&](const char* name, size_t at, std::initializer_list<int> bytes) {
    const GradientCodec codec = codec_of(name);
    Frame frame = frame_of(codec);
    CHECK(refusal(codec, frame) == "");
    put(frame, kHeader + at, bytes);
    return says(refusal(codec, frame), "does not write");
  };
  CHECK(broken("bf16", 100, {0xc0, 0x7f}));      // NaN
  CHECK(broken("bf16", 100, {0x80, 0xff}));      // -Inf
  CHECK(broken("fp16", 101, {0x00, 0x7c}));      // Inf
  CHECK(broken("fp16", 101, {0xff, 0xff}));      // NaN
  CHECK(broken("fp16", 0, {0x80}));              // a scale of 2^-128
  CHECK(broken("int8", 0, {0, 0, 0x80, 0x7f}));  // a scale that is Inf, NaN, negative
  CHECK(broken("int8", 260, {0, 0, 0xc0, 0x7f}));
  CHECK(broken("int8", 0, {0, 0, 0, 0x80}));
  CHECK(broken("sign", 0, {0x80, 0x7f}));
  CHECK(broken("sign", 66, {0x80, 0xbf}));
  CHECK(broken("topk:0.01", 62, {0x80, 0x7f}));  // behind 41 places of 12 bits
  CHECK(broken("topk:0.01", 0, {0, 0, 0}));      // a place that comes twice
  CHECK(broken("topk:0.01", 0, {0xff, 0xff, 0xff}));
  CHECK(broken("topk:0.01", 61, {0xff}));                         // bits behind the last place
  CHECK(broken("topk:0.25", 0, {0xff, 0xff, 0xff, 0xff, 0xff}));  // too many places
  CHECK(broken("lowrank:2", 0, {0x80, 0x7f}));
  CHECK(broken("lowrank:2", 0, {0x80, 0x40}));    // a direction as long as 4
  CHECK(broken("lowrank:2", 256, {0x00, 0x7c}));  // 2^121
}

TEST_CASE("places and bits beyond a short block are refused") {
  const std::vector<ParameterTile> five = {{0, 5, false, -1, 0, 1}};
  for (const char* name : {"sign", "topk:0.25"}) {
    const GradientCodec codec = codec_of(name, five);
    Frame frame = frame_of(codec, five);
    CHECK(refusal(codec, frame) == "");
    const size_t bits = kHeader + (codec.format().kind == GradientKind::kSign ? 2 : 0);
    frame[bits] = static_cast<std::byte>(0xc0);
    CHECK(says(refusal(codec, frame), "does not write"));
  }
}
