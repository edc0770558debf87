// How many threads this process has, for tests that promise to leave none.
#pragma once

#include <sched.h>

#include <cstddef>
#include <filesystem>

namespace fastserve {

inline size_t thread_count() {
  const auto tasks = std::filesystem::directory_iterator("/proc/self/task");
  return static_cast<size_t>(std::distance(begin(tasks), end(tasks)));
}

/// The count once it is `expected`, or, when it never becomes that, as it stays. A thread that has
/// been joined is still listed for the instant that the kernel needs to take it down.
inline size_t settled_thread_count(size_t expected) {
  for (int look = 0; look < 20000 && thread_count() != expected; look++) sched_yield();
  return thread_count();
}

}  // namespace fastserve
