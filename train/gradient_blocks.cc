// Plain loops over blocks that stay in the first-level cache, which the compiler vectorises. Floats
// are added in lanes whose number is fixed here, so that the bits are the same whatever the
// compiler makes of it.
#include "train/gradient_blocks.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/half.h"
#include "train/gradient_top_k.h"

namespace fastserve {
namespace {

static_assert(std::endian::native == std::endian::little, "the forms are little-endian");

constexpr uint32_t kAbsolute = 0x7fffffff;
constexpr uint32_t kLimit = 0x71800000;  // 2^100

/// The bits of the largest |x|: floats without their sign are ordered as integers.
int32_t largest_bits(const float* x, size_t n) {
  int32_t largest = 0;
  for (size_t i = 0; i < n; i++)
    largest = std::max(largest, static_cast<int32_t>(std::bit_cast<uint32_t>(x[i]) & kAbsolute));
  return largest;
}

float power_of_two(int exponent) {
  return std::bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23);
}

// fp16: the exponent of the scale, then the halves of x * scale.

/// Brings the largest value to [2^14, 2^15), below the largest half; what is 2^-38 of it vanishes.
int half_shift(const float* x, size_t n) {
  const int exponent = (largest_bits(x, n) >> 23) - 127;
  return std::min(14 - exponent, 120);
}

void encode_half(const float* x, size_t n, std::byte* out) {
  const int shift = half_shift(x, n);
  const float scale = power_of_two(shift);
  uint16_t halves[kGradientBlock];
  for (size_t i = 0; i < n; i++) {
    // to_float16() without what cannot be here: infinities, and branches.
    const uint32_t u = std::bit_cast<uint32_t>(x[i] * scale);
    const uint32_t sign = (u >> 16) & 0x8000, a = u & kAbsolute;
    const uint32_t small = std::bit_cast<uint32_t>(std::bit_cast<float>(a) + 0.5f) - 0x3f000000;
    const uint32_t normal = (a - (112u << 23) + 0xfff + ((a >> 13) & 1)) >> 13;
    const uint32_t is_small = static_cast<int32_t>(a) < 0x38800000 ? ~0u : 0u;
    halves[i] = static_cast<uint16_t>(sign | (small & is_small) | (normal & ~is_small));
  }
  out[0] = static_cast<std::byte>(static_cast<int8_t>(shift));
  std::memcpy(out + 1, halves, n * sizeof(uint16_t));
}

bool decode_half(const std::byte* in, size_t n, float* x) {
  const int shift = static_cast<int8_t>(in[0]);
  if (shift < 14 - 99 || shift > 120) return false;
  uint16_t halves[kGradientBlock];
  std::memcpy(halves, in + 1, n * sizeof(uint16_t));
  const float scale = power_of_two(-shift);
  uint32_t infinite = 0;
  for (size_t i = 0; i < n; i++) {
    const uint32_t sign = uint32_t{halves[i] & 0x8000u} << 16, rest = halves[i] & 0x7fffu;
    infinite |= rest + 0x400;  // the exponent of an infinity carries into bit 15
    // Read as a float the exponent is 112 too small; a subnormal half comes out right as well.
    const float value = std::bit_cast<float>(rest << 13) * 0x1.0p112f;
    x[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign) * scale;
  }
  return (infinite & 0x8000) == 0;
}

// bf16.

void encode_bfloat(const float* x, size_t n, std::byte* out) {
  uint16_t halves[kGradientBlock];
  for (size_t i = 0; i < n; i++) {  // to_bfloat16() without its care for NaN
    const uint32_t u = std::bit_cast<uint32_t>(x[i]);
    halves[i] = static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
  }
  std::memcpy(out, halves, n * sizeof(uint16_t));
}

bool decode_bfloat(const std::byte* in, size_t n, float* x) {
  uint16_t halves[kGradientBlock];
  std::memcpy(halves, in, n * sizeof(uint16_t));
  uint32_t infinite = 0;
  for (size_t i = 0; i < n; i++) {
    infinite |= (halves[i] & 0x7fffu) + 0x80;
    x[i] = std::bit_cast<float>(uint32_t{halves[i]} << 16);
  }
  return (infinite & 0x8000) == 0;
}

// int8: a float for each 256 values, then those.

constexpr size_t kInt8Group = 256;

size_t groups(size_t n, size_t size) { return (n + size - 1) / size; }

void encode_int8(const float* x, size_t n, std::byte* out) {
  for (size_t at = 0; at < n; at += kInt8Group) {
    const size_t count = std::min(kInt8Group, n - at);
    const float largest = std::bit_cast<float>(static_cast<uint32_t>(largest_bits(x + at, count)));
    const bool vanishes = largest < 0x1.0p-100f;  // its inverse would not be finite
    const float scale = vanishes ? 0.0f : largest / 127.0f;
    const float inverse = vanishes ? 0.0f : 127.0f / largest;
    int8_t values[kInt8Group];
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the sum's last bit is worth 1
    for (size_t i = 0; i < count; i++) {
      const float rounded = x[at + i] * inverse + kRound;
      values[i] = static_cast<int8_t>(std::bit_cast<uint32_t>(rounded) - 0x4b400000u);
    }
    std::memcpy(out, &scale, sizeof(scale));
    std::memcpy(out + sizeof(scale), values, count);
    out += sizeof(scale) + count;
  }
}

/// Scales are never negative, and below the limit.
bool is_scale(float scale) { return std::bit_cast<uint32_t>(scale) < kLimit + (10u << 23); }

bool decode_int8(const std::byte* in, size_t n, float* x) {
  for (size_t at = 0; at < n; at += kInt8Group) {
    const size_t count = std::min(kInt8Group, n - at);
    float scale;
    int8_t values[kInt8Group];
    std::memcpy(&scale, in, sizeof(scale));
    std::memcpy(values, in + sizeof(scale), count);
    if (!is_scale(scale)) return false;
    for (size_t i = 0; i < count; i++) x[at + i] = static_cast<float>(values[i]) * scale;
    in += sizeof(scale) + count;
  }
  return true;
}

// sign: a bf16 for each 512 values, the mean of their magnitudes (Karimireddy et al. 2019), then a
// bit each.

constexpr size_t kSignGroup = 512;

float mean_magnitude(const float* x, size_t n) {
  constexpr size_t kLanes = 16;
  float lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (size_t l = 0; l < kLanes; l++)
      lanes[l] += std::bit_cast<float>(std::bit_cast<uint32_t>(x[i + l]) & kAbsolute);
  for (size_t l = 0; i + l < n; l++)
    lanes[l] += std::bit_cast<float>(std::bit_cast<uint32_t>(x[i + l]) & kAbsolute);
  double sum = 0;
  for (const float lane : lanes) sum += static_cast<double>(lane);
  return static_cast<float>(sum / static_cast<double>(n));
}

void encode_sign(const float* x, size_t n, std::byte* out) {
  for (size_t at = 0; at < n; at += kSignGroup) {
    const size_t count = std::min(kSignGroup, n - at);
    const BFloat16 scale = to_bfloat16(mean_magnitude(x + at, count));
    uint64_t words[kSignGroup / 64] = {};
    for (size_t i = 0; i < count; i++)
      words[i / 64] |= uint64_t{std::bit_cast<uint32_t>(x[at + i]) >> 31} << (i % 64);
    std::memcpy(out, &scale, sizeof(scale));
    std::memcpy(out + sizeof(scale), words, (count + 7) / 8);
    out += sizeof(scale) + (count + 7) / 8;
  }
}

bool decode_sign(const std::byte* in, size_t n, float* x) {
  for (size_t at = 0; at < n; at += kSignGroup) {
    const size_t count = std::min(kSignGroup, n - at);
    BFloat16 scale;
    uint64_t words[kSignGroup / 64] = {};
    std::memcpy(&scale, in, sizeof(scale));
    std::memcpy(words, in + sizeof(scale), (count + 7) / 8);
    if (!is_scale(to_float(scale))) return false;
    if (count % 64 != 0 && (words[count / 64] >> (count % 64)) != 0) return false;
    const uint32_t magnitude = uint32_t{scale.bits} << 16;
    for (size_t i = 0; i < count; i++) {
      const auto sign = static_cast<uint32_t>(words[i / 64] >> (i % 64)) << 31;
      x[at + i] = std::bit_cast<float>(magnitude | sign);
    }
    in += sizeof(scale) + (count + 7) / 8;
  }
  return true;
}

}  // namespace

bool encodable(const float* x, size_t n) {
  uint32_t beyond = 0;
  for (size_t i = 0; i < n; i++)
    beyond |= (std::bit_cast<uint32_t>(x[i]) & kAbsolute) + (0x80000000u - kLimit);
  return (beyond >> 31) == 0;
}

size_t block_bytes(const GradientFormat& format, size_t n) {
  switch (format.kind) {
    case GradientKind::kFloat32:
      return n * sizeof(float);
    case GradientKind::kBFloat16:
      return n * sizeof(uint16_t);
    case GradientKind::kFloat16:
      return 1 + n * sizeof(uint16_t);
    case GradientKind::kInt8:
      return n + groups(n, kInt8Group) * sizeof(float);
    case GradientKind::kTopK:
      return TopK(format.kept, n).bytes();
    // Whole groups are whole bytes, so only the last one is rounded up.
    case GradientKind::kSign:
      return (n + 7) / 8 + groups(n, kSignGroup) * sizeof(BFloat16);
    case GradientKind::kLowRank:
      break;
  }
  FS_CHECK(false);
}

void encode_block(const GradientFormat& format, const float* x, size_t n, std::byte* out) {
  switch (format.kind) {
    case GradientKind::kFloat32:
      std::memcpy(out, x, n * sizeof(float));
      return;
    case GradientKind::kBFloat16:
      return encode_bfloat(x, n, out);
    case GradientKind::kFloat16:
      return encode_half(x, n, out);
    case GradientKind::kInt8:
      return encode_int8(x, n, out);
    case GradientKind::kTopK:
      return TopK(format.kept, n).encode(x, out);
    case GradientKind::kSign:
      return encode_sign(x, n, out);
    case GradientKind::kLowRank:
      break;
  }
  FS_CHECK(false);
}

bool decode_block(const GradientFormat& format, const std::byte* in, size_t n, float* x) {
  switch (format.kind) {
    case GradientKind::kFloat32:
      std::memcpy(x, in, n * sizeof(float));
      return true;
    case GradientKind::kBFloat16:
      return decode_bfloat(in, n, x);
    case GradientKind::kFloat16:
      return decode_half(in, n, x);
    case GradientKind::kInt8:
      return decode_int8(in, n, x);
    case GradientKind::kTopK:
      return TopK(format.kept, n).decode(in, x);
    case GradientKind::kSign:
      return decode_sign(in, n, x);
    case GradientKind::kLowRank:
      break;
  }
  FS_CHECK(false);
}

}  // namespace fastserve
