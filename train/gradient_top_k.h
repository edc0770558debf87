// The largest values of a block and where they lie.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastserve {

/// Sends the `kept` of 4096 largest magnitudes of a block of n <= 4096 values, at least one; of
/// equals the first.
///
/// On the wire: the places, ascending, as 12 bits each or, where that is shorter, one bit for each
/// value of the block; then the values as bf16.
class TopK {
 public:
  /// Requires 1 <= kept <= 4096 and 1 <= n <= 4096.
  TopK(int kept, size_t n);

  size_t count() const { return count_; }
  size_t bytes() const { return place_bytes() + 2 * count_; }
  /// Requires finite values.
  void encode(const float* x, std::byte* out) const;
  /// Zero but for what was sent. False when a place comes twice or is not in the block, or a value
  /// is not finite.
  bool decode(const std::byte* in, float* x) const;

 private:
  bool as_bitmap() const { return count_ * 12 > n_; }
  size_t place_bytes() const;
  void write_places(const uint16_t* places, std::byte* out) const;
  bool read_places(const std::byte* in, uint16_t* places) const;

  size_t n_, count_;
};

}  // namespace fastserve
