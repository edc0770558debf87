// Random numbers that are the same on every machine: no std:: distributions, whose results differ.
#pragma once

#include <cstdint>

namespace fastserve {

/// One round of splitmix64 (Steele, Lea, Flood 2014): a good 64-bit hash of a counter.
constexpr uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

/// Counter-based generator: its whole state is (seed, counter), so a checkpoint of it is two words.
/// Not thread-safe; not for cryptography.
class Rng {
 public:
  explicit Rng(uint64_t seed, uint64_t counter = 0) : seed_(seed), counter_(counter) {}

  uint64_t next() { return mix64(seed_ ^ mix64(counter_++)); }
  /// Uniform in [0, 1), 53 bits.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  /// Uniform in [0, n); n > 0. Bias below 2^-32 for n < 2^32 (Lemire's multiply-shift).
  uint64_t below(uint64_t n) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(next()) * n) >> 64);
  }
  /// Standard normal (Box-Muller; one value per call so that the counter alone is the state).
  double normal();

  uint64_t seed() const { return seed_; }
  uint64_t counter() const { return counter_; }

 private:
  uint64_t seed_;
  uint64_t counter_;
};

}  // namespace fastserve
