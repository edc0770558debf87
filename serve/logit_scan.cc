#include "serve/logit_scan.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <limits>

#include "base/check.h"

namespace fastserve {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// e^z for z <= 0: 2^n * e^r with z = n ln2 + r, |r| <= ln2 / 2, and e^r by its Taylor series,
/// whose remainder r^8 / 8! is below 6e-9.
inline float exp_of_negative(float z) {
  const float in_range = z > -87.0f ? z : -87.0f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (in_range * 1.44269504f + kRound) - kRound;
  const float r = (in_range - n * 0.693359375f) + n * 2.12194440e-4f;  // ln2 in two parts
  float e = 1.0f / 5040.0f;
  e = e * r + 1.0f / 720.0f;
  e = e * r + 1.0f / 120.0f;
  e = e * r + 1.0f / 24.0f;
  e = e * r + 1.0f / 6.0f;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  const float power = std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  return z > -87.0f ? e * power : 0.0f;
}

/// Four lanes in the compiler's own vector types, which any target has.
typedef float Lanes __attribute__((vector_size(16)));
typedef int32_t Flags __attribute__((vector_size(16)));

/// The maximum of a whole block; raises `bad` where a logit is NaN or +infinity.
float block_maximum(const float* x, Flags& bad) {
  Lanes most[4], next[4];
  std::memcpy(most, x, sizeof most);
  for (const Lanes& lanes : most) bad |= ~(lanes < kInfinity);
  for (int i = 16; i < LogitScan::kBlock; i += 16) {
    std::memcpy(next, x + i, sizeof next);
    for (size_t l = 0; l < 4; ++l) {
      bad |= ~(next[l] < kInfinity);
      most[l] = next[l] > most[l] ? next[l] : most[l];
    }
  }
  for (size_t l = 1; l < 4; ++l) most[0] = most[l] > most[0] ? most[l] : most[0];
  float max = most[0][0];
  for (int i = 1; i < 4; ++i) max = most[0][i] > max ? most[0][i] : max;
  return max;
}

}  // namespace

float exp_weight(float x, float max, float scale) { return exp_of_negative((x - max) * scale); }

void exp_weights(std::span<const float> x, float max, float scale, std::span<float> out) {
  FS_CHECK(out.size() >= x.size());
  const float* __restrict in = x.data();
  float* __restrict to = out.data();
  for (size_t i = 0; i < x.size(); ++i) to[i] = exp_of_negative((in[i] - max) * scale);
}

LogitScan::LogitScan(int vocab_size)
    : block_max_(static_cast<size_t>((vocab_size + kBlock - 1) / kBlock)) {
  scratch_.reserve(static_cast<size_t>(vocab_size));
}

bool LogitScan::scan(std::span<const float> logits) {
  logits_ = logits;
  const size_t whole = logits.size() / kBlock, blocks = (logits.size() + kBlock - 1) / kBlock;
  FS_CHECK(blocks > 0 && blocks <= block_max_.size());
  Flags bad = {};
  for (size_t b = 0; b < whole; ++b) block_max_[b] = block_maximum(logits.data() + b * kBlock, bad);
  if (whole < blocks) {  // the last block, filled up
    float rest[kBlock];
    std::fill_n(rest, kBlock, -kInfinity);
    std::copy(logits.begin() + static_cast<long>(whole * kBlock), logits.end(), rest);
    block_max_[whole] = block_maximum(rest, bad);
  }
  max_ = *std::max_element(block_max_.begin(), block_max_.begin() + static_cast<long>(blocks));
  for (int i = 0; i < 4; ++i)
    if (bad[i] != 0) return false;
  return max_ > -kInfinity;
}

int32_t LogitScan::argmax() const {
  size_t b = 0;
  while (block_max_[b] != max_) ++b;
  const auto found =
      std::find(logits_.begin() + static_cast<long>(b * kBlock), logits_.end(), max_);
  return static_cast<int32_t>(found - logits_.begin());
}

float LogitScan::kth_largest(int k) {
  const size_t count = static_cast<size_t>(k);
  FS_CHECK(count >= 1 && count <= logits_.size());
  const size_t blocks = (logits_.size() + kBlock - 1) / kBlock;
  // k blocks hold a logit of at least the k-th largest block maximum, so the answer is no smaller.
  float floor = -kInfinity;
  if (count <= blocks) {
    scratch_.assign(block_max_.begin(), block_max_.begin() + static_cast<long>(blocks));
    const auto kth = scratch_.begin() + (k - 1);
    std::nth_element(scratch_.begin(), kth, scratch_.end(), std::greater<>());
    floor = *kth;
  }
  scratch_.clear();
  for (size_t b = 0; b < blocks; ++b) {
    if (block_max_[b] < floor) continue;
    const size_t end = std::min(logits_.size(), (b + 1) * kBlock);
    for (size_t i = b * kBlock; i < end; ++i)
      if (logits_[i] >= floor) scratch_.push_back(logits_[i]);
  }
  const auto kth = scratch_.begin() + (k - 1);
  std::nth_element(scratch_.begin(), kth, scratch_.end(), std::greater<>());
  return *kth;
}

void LogitScan::collect(float threshold, std::vector<int32_t>& tokens) const {
  tokens.clear();
  const size_t blocks = (logits_.size() + kBlock - 1) / kBlock;
  for (size_t b = 0; b < blocks; ++b) {
    if (block_max_[b] < threshold) continue;
    const size_t end = std::min(logits_.size(), (b + 1) * kBlock);
    for (size_t i = b * kBlock; i < end; ++i)
      if (logits_[i] >= threshold) tokens.push_back(static_cast<int32_t>(i));
  }
}

}  // namespace fastserve
