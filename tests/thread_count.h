// Which threads this process has, for tests that promise to leave none.
#pragma once

#include <sched.h>

#include <cstddef>
#include <filesystem>
#include <set>
#include <string>

namespace fastserve {

/// The ids of this process's threads, as the kernel writes them.
inline std::set<std::string> thread_ids() {
  std::set<std::string> ids;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task"))
    ids.insert(task.path().filename());
  return ids;
}

inline size_t thread_count() { return thread_ids().size(); }

/// How many threads are there that were not there `before`: at once when there are none, and otherwise once
/// there has been time to end. A thread that has been joined is still listed for the instant that the kernel
/// needs to take it down; for the same reason one of an earlier test may be in `before` and gone now.
inline size_t threads_left_since(const std::set<std::string>& before) {
  const auto left = [&before] {
    size_t count = 0;
    for (const auto& id : thread_ids()) count += !before.contains(id);
    return count;
  };
  for (int look = 0; look < 20000 && left() != 0; look++) sched_yield();
  return left();
}

}  // namespace fastserve
