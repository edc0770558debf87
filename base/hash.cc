#include "base/hash.h"

#include <fmt/format.h>
// The library is built for any x86-64, and its hash with it: 10 GB/s on a core where the widest
// instructions of the same machine do 48. This header picks them when the program starts.
#ifdef FASTSERVE_XXHASH_DISPATCHES
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

#include "base/check.h"

namespace fastserve {
namespace {

#if defined(__x86_64__)
__attribute__((target("avx"))) void clear_wide_registers() { __builtin_ia32_vzeroupper(); }
#endif

/// Around each call that reads bytes. The library leaves wide registers in use (0.8.1 of Debian and
/// Ubuntu does), and on Intel's processors all that the thread computes from there on in narrow
/// ones, until something clears them, takes up to a hundred times as long.
struct ClearedWideRegisters {
  ~ClearedWideRegisters() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx")) clear_wide_registers();
#endif
  }
};

}  // namespace

uint64_t hash64(std::span<const std::byte> bytes, uint64_t seed) {
  const ClearedWideRegisters cleared;
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

uint64_t hash64(std::string_view text, uint64_t seed) {
  const ClearedWideRegisters cleared;
  return XXH3_64bits_withSeed(text.data(), text.size(), seed);
}

std::string Hash128::hex() const { return fmt::format("{:016x}{:016x}", high, low); }

Hash128 hash128(std::span<const std::byte> bytes) {
  const ClearedWideRegisters cleared;
  const XXH128_hash_t h = XXH3_128bits(bytes.data(), bytes.size());
  return {h.high64, h.low64};
}

Hasher128::Hasher128() : state_(XXH3_createState()) {
  FS_CHECK(state_ != nullptr);
  XXH3_128bits_reset(static_cast<XXH3_state_t*>(state_));
}

Hasher128::~Hasher128() { XXH3_freeState(static_cast<XXH3_state_t*>(state_)); }

void Hasher128::update(std::span<const std::byte> bytes) {
  const ClearedWideRegisters cleared;
  XXH3_128bits_update(static_cast<XXH3_state_t*>(state_), bytes.data(), bytes.size());
}

Hash128 Hasher128::digest() const {
  const ClearedWideRegisters cleared;
  const XXH128_hash_t h = XXH3_128bits_digest(static_cast<XXH3_state_t*>(state_));
  return {h.high64, h.low64};
}

}  // namespace fastserve
