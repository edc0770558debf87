// What a node may send as gradients, or a shard as weights: any bytes as a frame, and any behind a
// header that is right. What is read is finite, twice the same, and zero between tiles.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "train/weight_codec.h"

using namespace fastserve;

namespace {

const std::vector<ParameterTile> kTiles = {{16, 64 * 24, true, 0, 0, 64},
                                           {1552, 10 * 24, true, 0, 64, 10},
                                           {1792, 5, false, -1, 0, 1},
                                           {1808, 4500, false, -1, 0, 1}};

void check_gradients(const GradientFormat& format, std::span<const std::byte> frame) {
  const GradientCodec codec(format, kTiles);
  std::vector<float> values(codec.elements(), 5.0f), again(codec.elements(), 6.0f);
  if (!codec.decode(frame, values).ok()) return;
  FS_CHECK(frame.size() == codec.encoded_bytes() || frame.size() == codec.exact_bytes());
  FS_CHECK(codec.decode(frame, again).ok());
  FS_CHECK(std::memcmp(values.data(), again.data(), values.size() * sizeof(float)) == 0);
  for (size_t i = 1797; i < 1808; i++) FS_CHECK(values[i - 16] == 0);
  if (frame.size() == codec.exact_bytes()) return;  // fp32 carries what is not finite
  for (const float value : values) FS_CHECK(std::isfinite(value));
}

void check_weights(const WeightsBack& format, std::span<const std::byte> frame) {
  const WeightCodec codec(format, kTiles, {true, true, false, false});
  std::vector<float> weights(codec.elements(), 1.0f);
  uint64_t version = 0;
  if (!codec.decode(frame, weights, version).ok()) FS_CHECK(version == 0);
}

/// `body` behind the header of a frame that is right, cut or filled up to its length.
std::vector<std::byte> framed(std::span<const std::byte> good, std::span<const std::byte> body,
                              size_t header) {
  std::vector<std::byte> frame(good.begin(), good.end());
  std::copy_n(body.begin(), std::min(body.size(), frame.size() - header),
              frame.begin() + static_cast<ptrdiff_t>(header));
  return frame;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const char* const kForms[] = {"fp32",     "bf16", "fp16",      "int8",     "topk:0.01",
                                       "topk:0.5", "sign", "lowrank:1", "lowrank:6"};
  if (size < 1) return 0;
  const GradientFormat format = GradientFormat::parse(kForms[data[0] % std::size(kForms)]).value();
  const std::span body(reinterpret_cast<const std::byte*>(data + 1), size - 1);
  (void)GradientFormat::parse({reinterpret_cast<const char*>(data), size}).ok();
  (void)WeightsBack::parse({reinterpret_cast<const char*>(data), size}).ok();

  const GradientCodec codec(format, kTiles);
  const std::vector<float> zeros(codec.elements());
  std::vector<std::byte> good(codec.encoded_bytes());
  ErrorFeedback feedback;
  FS_CHECK(codec.encode(zeros, feedback, good).ok());
  check_gradients(format, body);
  check_gradients(format, framed(good, body, 24));

  WeightsBack back{static_cast<WeightsBack::Kind>(data[0] / 16 % 3), format};
  const WeightCodec weights(back, kTiles, {true, true, false, false});
  WeightShadow shadow = weights.shadow_of(zeros);
  good.resize(weights.encoded_bytes());
  FS_CHECK(weights.encode(zeros, shadow, good).ok());
  check_weights(back, body);
  check_weights(back, framed(good, body, 24));
  check_weights(back, framed(good, body, std::min<size_t>(48, good.size())));
  return 0;
}
