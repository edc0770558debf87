// The checksum of a chunk, however its bytes are cut. For net/ alone.
#pragma once

#include <span>

#include "base/hash.h"

namespace fastserve {

template <class Parts>
uint64_t chunk_hash(const Parts& parts) {
  if (parts.size() == 1) return hash128(std::as_bytes(parts.front())).low;
  Hasher128 hasher;
  for (const auto& part : parts) hasher.update(std::as_bytes(part));
  return hasher.digest().low;
}

}  // namespace fastserve
