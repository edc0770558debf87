// XXH3 (xxHash): fast checksums against accidents, not against attackers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace fastserve {

uint64_t hash64(std::span<const std::byte> bytes, uint64_t seed = 0);
uint64_t hash64(std::string_view text, uint64_t seed = 0);

struct Hash128 {
  uint64_t high = 0, low = 0;
  auto operator<=>(const Hash128&) const = default;
  /// 32 lower-case hex digits.
  std::string hex() const;
};
Hash128 hash128(std::span<const std::byte> bytes);

/// The same Hash128 over bytes that arrive in pieces.
class Hasher128 {
 public:
  Hasher128();
  ~Hasher128();
  Hasher128(const Hasher128&) = delete;
  Hasher128& operator=(const Hasher128&) = delete;
  void update(std::span<const std::byte> bytes);
  Hash128 digest() const;

 private:
  void* state_;
};

}  // namespace fastserve
