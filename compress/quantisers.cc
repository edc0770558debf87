#include "compress/quantisers.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>

#include "base/half.h"

namespace fastserve {
namespace {

constexpr int kRowsPerItem = 64;

// The loops below are written so that a compiler vectorises them for any x86-64: no calls, no
// branches, and integers where the order of floats would need them.

/// The bits of the largest |w|: without their signs floats order as integers do, infinity and NaN
/// last.
int32_t largest_bits(std::span<const float> weights) {
  int32_t largest = 0;
  for (const float w : weights) largest = std::max(largest, std::bit_cast<int32_t>(w) & 0x7fffffff);
  return largest;
}

float largest_magnitude(std::span<const float> weights) {
  return std::bit_cast<float>(largest_bits(weights));
}

bool all_finite(std::span<const float> weights) { return largest_bits(weights) < 0x7f800000; }

/// std::nearbyint for |x| < 2^22: above 2^23 floats are whole numbers, and the sum is rounded to
/// one.
float round_to_even(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }
double round_to_even(double x) { return (x + 0x1.8p52) - 0x1.8p52; }

/// std::round for |x| < 2^22: as above, but that a tie (the difference is exact) goes away from 0.
float round_away(float x) {
  const float even = round_to_even(x), rest = x - even;
  return even + ((rest == 0.5f) & (x > 0) ? 1.0f : 0.0f) -
         ((rest == -0.5f) & (x < 0) ? 1.0f : 0.0f);
}

uint8_t int8_code(float rounded) {
  return static_cast<uint8_t>(std::clamp(static_cast<int>(rounded), -127, 127));
}

float as_half(float value) { return to_float(to_float16(value)); }

/// 1/d as ggml has it; 0 where d is 0 or so small that its reciprocal overflows (the f16 scale is 0
/// too).
float reciprocal(float d) {
  const float inverse = d != 0 ? 1.0f / d : 0.0f;
  return std::isfinite(inverse) ? inverse : 0.0f;
}

float int8_row(std::span<const float> weights, uint8_t* codes) {
  const float scale = largest_magnitude(weights) / 127.0f;
  const float divisor = scale > 0 ? scale : std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < weights.size(); i++)
    codes[i] = int8_code(round_to_even(weights[i] / divisor));
  return scale;
}

float int8_group(std::span<const float> weights, uint8_t* codes) {
  const float scale = largest_magnitude(weights) / 127.0f;
  const float inverse = reciprocal(scale);
  for (size_t i = 0; i < weights.size(); i++)
    codes[i] = int8_code(round_away(weights[i] * inverse));
  return as_half(scale);
}

float int4_group32(std::span<const float> weights, uint8_t* codes) {
  float most = 0;
  for (const float w : weights)
    if (std::fabs(w) > std::fabs(most)) most = w;  // the first of equals
  const float scale = most / -8.0f;
  const float inverse = reciprocal(scale);
  for (size_t i = 0; i < weights.size(); i++) {
    const float shifted = weights[i] * inverse + 8.5f;
    codes[i] = static_cast<uint8_t>(std::clamp(static_cast<int>(shifted), 0, 15));
  }
  return as_half(scale);
}

struct GroupParameters {
  double scale = 0, zero = 0, low = 0, high = 0;
  int code(float w) const {
    const double raw = scale > 0 ? std::nearbyint(static_cast<double>(w) / scale) : 0.0;
    return static_cast<int>(std::clamp(raw + zero, low, high));
  }
};

GroupParameters group_parameters(std::span<const float> weights, int bits, bool symmetric) {
  GroupParameters p;
  if (symmetric) {
    p.high = (1 << (bits - 1)) - 1;
    p.low = -p.high;
    p.scale = static_cast<double>(largest_magnitude(weights)) / p.high;
    return p;
  }
  const auto [low, high] = std::minmax_element(weights.begin(), weights.end());
  const double least = std::min(0.0, static_cast<double>(*low)),
               most = std::max(0.0, static_cast<double>(*high));
  p.high = (1 << bits) - 1;
  p.scale = (most - least) / p.high;
  p.zero = p.scale > 0 ? std::nearbyint(-least / p.scale) : 0.0;
  return p;
}

float int4_group128(std::span<const float> weights, uint8_t* codes) {
  const GroupParameters p = group_parameters(weights, 4, true);
  const double divisor = p.scale > 0 ? p.scale : std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < weights.size(); i++) {
    const double code = round_to_even(static_cast<double>(weights[i]) / divisor);
    codes[i] = static_cast<uint8_t>(std::clamp(static_cast<int>(code), -7, 7) + 8);
  }
  return as_half(static_cast<float>(p.scale));
}

float quantise_group(WeightFormat format, std::span<const float> weights, uint8_t* codes) {
  switch (format) {
    case WeightFormat::kInt8Row:
      return int8_row(weights, codes);
    case WeightFormat::kInt8Group32:
    case WeightFormat::kInt8Group128:
      return int8_group(weights, codes);
    case WeightFormat::kInt4Group32:
      return int4_group32(weights, codes);
    case WeightFormat::kInt4Group128:
      return int4_group128(weights, codes);
    default:
      break;
  }
  FS_CHECK(is_quantised(format));
  return 0;
}

}  // namespace

QuantisedMatrix make_quantised(WeightFormat format, int rows, int cols) {
  FS_CHECK(is_quantised(format) && rows > 0 && cols > 0);
  QuantisedMatrix out;
  out.format = format;
  out.rows = rows;
  out.cols = cols;
  out.codes.resize(static_cast<size_t>(rows) * static_cast<size_t>(cols));
  out.scales.resize(static_cast<size_t>(rows) * static_cast<size_t>(out.groups()));
  return out;
}

bool quantise_rows(std::span<const float> weights, int row, int count, QuantisedMatrix& out) {
  FS_CHECK(row >= 0 && count >= 0 && row + count <= out.rows && weights.size() == out.codes.size());
  const size_t cols = static_cast<size_t>(out.cols), groups = static_cast<size_t>(out.groups());
  const size_t group =
      format_group(out.format) == 0 ? cols : static_cast<size_t>(format_group(out.format));
  for (size_t r = static_cast<size_t>(row); r < static_cast<size_t>(row + count); r++) {
    const std::span<const float> whole = weights.subspan(r * cols, cols);
    if (!all_finite(whole)) return false;
    for (size_t g = 0; g < groups; g++) {
      const size_t first = g * group, size = std::min(group, cols - first);
      const float scale = quantise_group(out.format, whole.subspan(first, size),
                                         out.codes.data() + r * cols + first);
      if (!std::isfinite(scale)) return false;
      out.scales[r * groups + g] = scale;
    }
  }
  return true;
}

Result<QuantisedMatrix> quantise(std::span<const float> weights, int rows, int cols,
                                 WeightFormat format, const std::string& where,
                                 const ParallelFor& parallel) {
  QuantisedMatrix out = make_quantised(format, rows, cols);
  std::atomic<bool> fine{true};
  const auto item = [&](int64_t i) {
    const int first = static_cast<int>(i) * kRowsPerItem;
    if (!quantise_rows(weights, first, std::min(kRowsPerItem, rows - first), out)) fine = false;
  };
  const int64_t items = (rows + kRowsPerItem - 1) / kRowsPerItem;
  if (parallel)
    parallel(items, item);
  else
    for (int64_t i = 0; i < items; i++) item(i);
  if (fine) return out;
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("holds weights that are not finite, or too large for {}",
                           weight_format_name(format)),
               where, "check the model: its training may have diverged"};
}

GroupCodes quantise_groups(std::span<const float> weights, int rows, int cols, int bits, int group,
                           bool symmetric) {
  FS_CHECK(bits >= 2 && bits <= 8 && group > 0);
  FS_CHECK(weights.size() == static_cast<size_t>(rows) * static_cast<size_t>(cols));
  GroupCodes out;
  out.rows = rows;
  out.cols = cols;
  out.group = group;
  out.codes.reserve(weights.size());
  for (int row = 0; row < rows; row++)
    for (int first = 0; first < cols; first += group) {
      const size_t begin =
          static_cast<size_t>(row) * static_cast<size_t>(cols) + static_cast<size_t>(first);
      const std::span<const float> part =
          weights.subspan(begin, static_cast<size_t>(std::min(group, cols - first)));
      const GroupParameters p = group_parameters(part, bits, symmetric);
      for (const float w : part) out.codes.push_back(static_cast<int16_t>(p.code(w)));
      out.scales.push_back(p.scale);
      out.zeros.push_back(p.zero);
    }
  return out;
}

std::vector<float> GroupCodes::dequantised() const {
  std::vector<float> out;
  out.reserve(codes.size());
  const int groups = (cols + group - 1) / group;
  for (int row = 0; row < rows; row++)
    for (int col = 0; col < cols; col++) {
      const size_t at =
          static_cast<size_t>(row) * static_cast<size_t>(groups) + static_cast<size_t>(col / group);
      out.push_back(static_cast<float>((codes[out.size()] - zeros[at]) * scales[at]));
    }
  return out;
}

}  // namespace fastserve
