#include "train/gradient_top_k.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/half.h"

namespace fastserve {
namespace {

constexpr size_t kMost = 4096;

template <class T>
size_t count_at_least(const T* values, size_t n, T threshold) {
  T count = 0;  // as wide as the values, so that a register holds as many of both
  for (size_t i = 0; i < n; i++) count = static_cast<T>(count + (values[i] >= threshold ? 1 : 0));
  return static_cast<size_t>(count);
}

template <class T>
struct Threshold {
  T value;
  bool all;      ///< that are of at least `value` are wanted
  size_t above;  ///< otherwise: how many are larger
};

/// The `wanted` largest of n > 0 values from 0 on are those of at least `value`, or some of these.
/// Halves the range: each turn is one pass over a block in the first-level cache, without a branch.
template <class T>
Threshold<T> find_threshold(const T* values, size_t n, size_t wanted) {
  T largest = 0;
  for (size_t i = 0; i < n; i++) largest = std::max(largest, values[i]);
  int32_t low = 0, high = int32_t{largest} + 1;
  size_t above = 0;
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    const size_t count = count_at_least(values, n, static_cast<T>(middle));
    if (count >= wanted) low = middle;
    if (count == wanted) return {static_cast<T>(low), true, 0};
    if (count < wanted) high = middle, above = count;
  }
  return {static_cast<T>(low), false, above};
}

/// By the upper halves first, of which twice as many fit a register, then among those that share
/// one.
Threshold<int32_t> find_threshold_in_halves(const int32_t* magnitudes, size_t n, size_t wanted) {
  int16_t upper[kMost];
  for (size_t i = 0; i < n; i++) upper[i] = static_cast<int16_t>(magnitudes[i] >> 16);
  const auto [half, all, above] = find_threshold(upper, n, wanted);
  if (all) return {int32_t{half} << 16, true, 0};
  int32_t sharing[kMost];
  size_t found = 0;
  for (size_t i = 0; i < n; i++) {
    sharing[found] = magnitudes[i];
    found += upper[i] == half ? 1 : 0;
  }
  const auto exact = find_threshold(sharing, found, wanted - above);
  return {exact.value, exact.all, above + exact.above};
}

}  // namespace

TopK::TopK(int kept, size_t n)
    : n_(n), count_((n * static_cast<size_t>(kept) + kMost - 1) / kMost) {
  FS_CHECK(n >= 1 && n <= kMost && count_ >= 1 && count_ <= n);
}

size_t TopK::place_bytes() const { return as_bitmap() ? (n_ + 7) / 8 : (count_ * 12 + 7) / 8; }

void TopK::write_places(const uint16_t* places, std::byte* out) const {
  uint8_t packed[kMost * 3 / 2 + 3] = {};
  for (size_t i = 0; i < count_; i++) {
    if (as_bitmap()) {
      packed[places[i] / 8] |= static_cast<uint8_t>(1u << (places[i] % 8));
    } else if (i % 2 == 0) {
      packed[i / 2 * 3] = static_cast<uint8_t>(places[i]);
      packed[i / 2 * 3 + 1] = static_cast<uint8_t>(places[i] >> 8);
    } else {
      packed[i / 2 * 3 + 1] |= static_cast<uint8_t>(places[i] << 4);
      packed[i / 2 * 3 + 2] = static_cast<uint8_t>(places[i] >> 4);
    }
  }
  std::memcpy(out, packed, place_bytes());
}

bool TopK::read_places(const std::byte* in, uint16_t* places) const {
  uint8_t packed[kMost * 3 / 2 + 3] = {};
  std::memcpy(packed, in, place_bytes());
  if (as_bitmap()) {
    size_t found = 0;
    for (size_t i = 0; i < 8 * place_bytes(); i++)
      if ((packed[i / 8] >> (i % 8) & 1) != 0) {
        if (i >= n_ || found == count_) return false;
        places[found++] = static_cast<uint16_t>(i);
      }
    return found == count_;
  }
  for (size_t i = 0; i < count_; i++) {
    const uint8_t* at = packed + i / 2 * 3;
    places[i] =
        static_cast<uint16_t>(i % 2 == 0 ? at[0] | (at[1] & 15) << 8 : at[1] >> 4 | at[2] << 4);
    if (places[i] >= n_ || (i > 0 && places[i] <= places[i - 1])) return false;
  }
  return count_ % 2 == 0 || (packed[place_bytes() - 1] >> 4) == 0;
}

void TopK::encode(const float* x, std::byte* out) const {
  int32_t magnitudes[kMost];
  for (size_t i = 0; i < n_; i++)
    magnitudes[i] = static_cast<int32_t>(std::bit_cast<uint32_t>(x[i]) & 0x7fffffff);
  const auto [threshold, all, above] = find_threshold_in_halves(magnitudes, n_, count_);
  uint16_t places[kMost];
  size_t found = 0;
  for (size_t i = 0; i < n_; i++) {
    places[found] = static_cast<uint16_t>(i);
    found += magnitudes[i] >= threshold ? 1 : 0;
  }
  FS_CHECK(all ? found == count_ : found >= count_);
  if (found > count_) {  // of equals the first
    size_t equals = count_ - above, kept = 0;
    for (size_t i = 0; i < found; i++) {
      const bool equal = magnitudes[places[i]] == threshold;
      if (equal && equals == 0) continue;
      equals -= equal ? 1 : 0;
      places[kept++] = places[i];
    }
    FS_CHECK(kept == count_);
  }
  BFloat16 values[kMost];
  for (size_t i = 0; i < count_; i++) values[i] = to_bfloat16(x[places[i]]);
  write_places(places, out);
  std::memcpy(out + place_bytes(), values, 2 * count_);
}

bool TopK::decode(const std::byte* in, float* x) const {
  uint16_t places[kMost];
  BFloat16 values[kMost];
  if (!read_places(in, places)) return false;
  std::memcpy(values, in + place_bytes(), 2 * count_);
  std::fill(x, x + n_, 0.0f);
  for (size_t i = 0; i < count_; i++) {
    if ((values[i].bits & 0x7f80) == 0x7f80) return false;
    x[places[i]] = to_float(values[i]);
  }
  return true;
}

}  // namespace fastserve
