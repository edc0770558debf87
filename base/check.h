// Assertions on invariants: they stay on in release builds.
#pragma once

namespace fastserve {
/// Prints the broken invariant and aborts.
[[noreturn]] void check_failed(const char* condition, const char* file, int line);
}  // namespace fastserve

/// A broken invariant is a bug, not an error: stop before it spreads. Never for outside input.
#define FS_CHECK(condition)                                                       \
  do {                                                                            \
    if (!(condition)) [[unlikely]]                                                \
      ::fastserve::check_failed(#condition, __FILE__, __LINE__);                  \
  } while (false)
