#include "actors/memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <sstream>

namespace fastserve {
namespace {

/// The number after `key` in a file of lines, some of which are "key number".
std::optional<uint64_t> number_after(const Path& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    uint64_t number = 0;
    if (words >> name && name == key && words >> number) return number;
  }
  return std::nullopt;
}

/// A file that holds one number, or a word such as "max".
std::optional<uint64_t> only_number(const Path& path) {
  std::ifstream file(path);
  uint64_t number = 0;
  if (file >> number) return number;
  return std::nullopt;
}

/// "/user.slice" from the line "0::/user.slice"; "/" when there is none.
std::string own_control_group() {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("0::/")) return line.substr(3);
  return "/";
}

}  // namespace

std::optional<uint64_t> control_group_headroom(const Path& root, const Path& folder) {
  std::optional<uint64_t> least;
  for (Path at = folder;; at = at.parent_path()) {
    const auto limit = only_number(at / "memory.max"), used = only_number(at / "memory.current");
    if (limit && used) {
      const uint64_t cache = number_after(at / "memory.stat", "inactive_file").value_or(0);
      const uint64_t taken = *used - std::min(*used, cache);
      const uint64_t left = *limit - std::min(*limit, taken);
      least = std::min(least.value_or(left), left);
    }
    if (at == root || at == at.parent_path()) return least;
  }
}

std::optional<uint64_t> memory_at_hand() {
  std::optional<uint64_t> bytes;
  if (const auto kib = number_after("/proc/meminfo", "MemAvailable:")) bytes = *kib << 10;
  const Path root = "/sys/fs/cgroup";
  const Path group = (root / own_control_group().substr(1)).lexically_normal();
  const std::string text = group.string();
  const Path folder = text.ends_with('/') ? Path(text.substr(0, text.size() - 1)) : group;
  if (const auto left = control_group_headroom(root, folder))
    bytes = std::min(bytes.value_or(*left), *left);
  return bytes;
}

uint64_t process_memory() {
  return number_after("/proc/self/status", "RssAnon:").value_or(0) << 10;
}

Status check_memory(const MemoryEstimate& need, uint64_t limit) {
  const std::optional<uint64_t> have = limit > 0 ? std::optional(limit) : memory_at_hand();
  if (!have || need.total() <= *have) return {};
  return Error{
      ErrorCode::kResourceExhausted,
      fmt::format("training needs {} of memory (weights {}, optimiser {}, gradients {}, "
                  "activations {}, copies {}) and {} can be had",
                  human_bytes(need.total()), human_bytes(need.weights), human_bytes(need.optimiser),
                  human_bytes(need.gradients), human_bytes(need.activations),
                  human_bytes(need.snapshots), human_bytes(*have)),
      "", "choose a smaller batch, block or model"};
}

}  // namespace fastserve
