// Searches over one row of logits that look at few of them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace fastserve {

/// exp((x - max) * scale) for x <= max, with a relative error below 1e-6 * (1 + the exponent's
/// size); 0 below e^-87. The same bits alone and in a row.
float exp_weight(float x, float max, float scale);
void exp_weights(std::span<const float> x, float max, float scale, std::span<float> out);

/// The maxima of a row's blocks, so that a search for large logits skips the blocks without any.
///
/// Owns:     maxima and scratch for one vocabulary, allocated once. Borrows the row scanned last.
/// Threads:  one caller.
class LogitScan {
 public:
  static constexpr int kBlock = 64;

  explicit LogitScan(int vocab_size);

  /// Looks at all of `logits`, which must stay as they are until the next scan. False when one of
  /// them is NaN or +infinity, or all are -infinity.
  bool scan(std::span<const float> logits);

  float max() const { return max_; }
  /// The first token with the largest logit.
  int32_t argmax() const;
  /// The k-th largest logit, 1 <= k <= size.
  float kth_largest(int k);
  /// Replaces `tokens` by those with a logit of at least `threshold`, ascending.
  void collect(float threshold, std::vector<int32_t>& tokens) const;

 private:
  std::span<const float> logits_;
  float max_ = 0;
  std::vector<float> block_max_, scratch_;
};

}  // namespace fastserve
