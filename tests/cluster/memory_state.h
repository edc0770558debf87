// A state store in memory, which can be made to fail, and copied as a backup is.
#pragma once

#include "store/state_store.h"

namespace fastserve::testing {

/// Threads: one caller at a time.
class MemoryState final : public StateStore {
 public:
  Result<std::optional<std::string>> get(const std::string& key) const override {
    const auto found = records.find(key);
    if (found == records.end()) return std::optional<std::string>();
    return std::optional(found->second);
  }
  Result<std::vector<std::pair<std::string, std::string>>> list(
      const std::string& prefix) const override {
    std::vector<std::pair<std::string, std::string>> found;
    for (auto at = records.lower_bound(prefix); at != records.end(); ++at) {
      if (!at->first.starts_with(prefix)) break;
      found.emplace_back(*at);
    }
    return found;
  }
  Status write(const Changes& changes) override {
    if (full) return Error{ErrorCode::kResourceExhausted, "the disk is full", "memory", ""};
    writes++;
    for (const auto& [key, value] : changes) {
      if (value)
        records[key] = *value;
      else
        records.erase(key);
    }
    return {};
  }

  std::map<std::string, std::string> records;
  bool full = false;
  int writes = 0;
};

}  // namespace fastserve::testing
