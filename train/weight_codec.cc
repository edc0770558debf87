#include "train/weight_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "train/gradient_blocks.h"

namespace fastserve {
namespace {

constexpr uint32_t kMagic = 0x31575346;  // "FSW1"

enum class Frame : uint8_t { kExact = 0, kBFloat16 = 1, kDelta = 2, kWhole = 3 };

struct Header {
  uint32_t magic;
  Frame frame;
  uint8_t unused[3];
  uint64_t version;  // after it
  uint32_t begin_low, elements_low;
};
static_assert(sizeof(Header) == 24);

Error corrupt(std::string what) {
  return {ErrorCode::kCorrupt, std::move(what), "a frame of weights",
          "the sender is of another version, or another job's"};
}

constexpr GradientFormat kRounded{GradientKind::kBFloat16, 0, 0};

}  // namespace

std::vector<bool> only_multiplied(const ParameterLayout& layout,
                                  std::span<const ParameterTile> tiles) {
  const Block& looked_up = layout.token_embedding();
  std::vector<bool> found;
  for (const ParameterTile& tile : tiles)
    found.push_back(tile.matrix >= 0 && (tile.offset < looked_up.offset ||
                                         tile.offset >= looked_up.offset + looked_up.size()));
  return found;
}

WeightCodec::WeightCodec(WeightsBack format, std::span<const ParameterTile> tiles,
                         std::vector<bool> only_multiplied)
    : format_(format),
      delta_(format.delta, tiles),
      tiles_(tiles.begin(), tiles.end()),
      only_multiplied_(std::move(only_multiplied)) {
  only_multiplied_.resize(tiles_.size());
  for (size_t i = 0; i < tiles_.size(); i++)
    rounded_bytes_ += tiles_[i].size * (only_multiplied_[i] ? 2 : sizeof(float));
}

size_t WeightCodec::encoded_bytes() const {
  switch (format_.kind) {
    case WeightsBack::Kind::kExact:
      return whole_bytes();
    case WeightsBack::Kind::kBFloat16:
      return kHeader + rounded_bytes_;
    case WeightsBack::Kind::kDelta:
      return kHeader + delta_.encoded_bytes();
  }
  FS_CHECK(false);
}

size_t WeightCodec::whole_bytes() const { return kHeader + elements() * sizeof(float); }

WeightShadow WeightCodec::shadow_of(std::span<const float> masters, uint64_t version) const {
  FS_CHECK(masters.size() == elements());
  WeightShadow shadow;
  shadow.version = version;
  if (format_.kind == WeightsBack::Kind::kDelta)
    shadow.weights.assign(masters.begin(), masters.end());
  return shadow;
}

namespace {

void write_header(const WeightCodec& codec, Frame frame, uint64_t version, std::byte* out) {
  const Header header{kMagic,
                      frame,
                      {},
                      version,
                      static_cast<uint32_t>(codec.begin()),
                      static_cast<uint32_t>(codec.elements())};
  std::memcpy(out, &header, sizeof(header));
}

}  // namespace

Status WeightCodec::encode(std::span<const float> masters, WeightShadow& shadow,
                           std::span<std::byte> frame) const {
  FS_CHECK(masters.size() == elements() && frame.size() == encoded_bytes());
  FS_TRY(encode_payload(masters, shadow, frame.subspan(kHeader)));
  shadow.version++;
  write_header(*this, static_cast<Frame>(format_.kind), shadow.version, frame.data());
  return {};
}

Status WeightCodec::encode_payload(std::span<const float> masters, WeightShadow& shadow,
                                   std::span<std::byte> payload) const {
  if (format_.kind == WeightsBack::Kind::kExact) {
    std::memcpy(payload.data(), masters.data(), masters.size_bytes());
    return {};
  }
  if (format_.kind == WeightsBack::Kind::kBFloat16) return encode_rounded(masters, payload);
  FS_CHECK(shadow.weights.size() == elements());
  std::vector<float> change(elements());
  for (size_t i = 0; i < change.size(); i++) change[i] = masters[i] - shadow.weights[i];
  FS_TRY(delta_.encode_alone(change, shadow.basis, payload));
  FS_TRY(delta_.decode(payload, change));
  for (size_t i = 0; i < change.size(); i++) shadow.weights[i] += change[i];
  return {};
}

Status WeightCodec::encode_rounded(std::span<const float> masters,
                                   std::span<std::byte> payload) const {
  std::byte* out = payload.data();
  for (size_t t = 0; t < tiles_.size(); t++) {
    const float* x = masters.data() + (tiles_[t].offset - begin());
    const GradientFormat format = only_multiplied_[t] ? kRounded : GradientFormat{};
    for (size_t at = 0; at < tiles_[t].size; at += kGradientBlock) {
      const size_t n = std::min(kGradientBlock, tiles_[t].size - at);
      if (!encodable(x + at, n))
        return Error{ErrorCode::kInvalidArgument, "holds a weight that is not finite",
                     fmt::format("tile {} of the slice, elements {} to {}", t,
                                 tiles_[t].offset + at, tiles_[t].offset + at + n),
                     "go on from the last checkpoint with a lower learning rate"};
      encode_block(format, x + at, n, out);
      out += block_bytes(format, n);
    }
  }
  return {};
}

Status WeightCodec::decode_rounded(std::span<const std::byte> payload,
                                   std::span<float> weights) const {
  const auto walk = [&](bool keep) {
    const std::byte* in = payload.data();
    std::vector<float> checked(keep ? 0 : kGradientBlock);
    for (size_t t = 0; t < tiles_.size(); t++) {
      float* x = weights.data() + (tiles_[t].offset - begin());
      const GradientFormat format = only_multiplied_[t] ? kRounded : GradientFormat{};
      for (size_t at = 0; at < tiles_[t].size; at += kGradientBlock) {
        const size_t n = std::min(kGradientBlock, tiles_[t].size - at);
        if (!decode_block(format, in, n, keep ? x + at : checked.data())) return false;
        in += block_bytes(format, n);
      }
    }
    return true;
  };
  if (!walk(false)) return corrupt("holds a weight that is not finite");
  walk(true);
  return {};
}

void WeightCodec::encode_whole(const WeightShadow& shadow, std::span<std::byte> frame) const {
  FS_CHECK(frame.size() == whole_bytes() && shadow.weights.size() == elements());
  write_header(*this, Frame::kWhole, shadow.version, frame.data());
  std::memcpy(frame.data() + kHeader, shadow.weights.data(), elements() * sizeof(float));
}

Status WeightCodec::decode(std::span<const std::byte> frame, std::span<float> weights,
                           uint64_t& version) const {
  FS_CHECK(weights.size() == elements());
  if (frame.size() < kHeader) return corrupt(fmt::format("has {} bytes", frame.size()));
  Header header;
  std::memcpy(&header, frame.data(), sizeof(header));
  const auto payload = frame.subspan(kHeader);
  if (header.magic != kMagic || header.unused[0] != 0 || header.unused[1] != 0 ||
      header.unused[2] != 0)
    return corrupt("does not begin as one");
  if (header.begin_low != static_cast<uint32_t>(begin()) ||
      header.elements_low != static_cast<uint32_t>(elements()))
    return corrupt("is of another slice");
  const bool delta = format_.kind == WeightsBack::Kind::kDelta;
  const bool whole = delta && header.frame == Frame::kWhole;
  if (!whole && header.frame != static_cast<Frame>(format_.kind))
    return corrupt(fmt::format("is of kind {}, and {} is expected", static_cast<int>(header.frame),
                               format_.text()));
  const size_t bytes = whole ? whole_bytes() : encoded_bytes();
  if (frame.size() != bytes)
    return corrupt(fmt::format("has {} bytes, and {} are expected", frame.size(), bytes));
  if (format_.kind == WeightsBack::Kind::kBFloat16) {
    FS_TRY(decode_rounded(payload, weights));
  } else if (!delta || whole) {
    std::memcpy(weights.data(), payload.data(), weights.size_bytes());
  } else {
    if (header.version != version + 1)
      return Error{
          ErrorCode::kUnavailable,
          fmt::format("leads to version {}, and this node holds {}", header.version, version),
          "a change of weights", "ask for the whole weights"};
    std::vector<float> change(elements());
    FS_TRY(delta_.decode(payload, change));
    for (size_t i = 0; i < change.size(); i++) weights[i] += change[i];
  }
  version = header.version;
  return {};
}

}  // namespace fastserve
