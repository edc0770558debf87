#include "base/spelling.h"

#include <algorithm>
#include <utility>

namespace fastserve {
namespace {

/// Edits (insert, delete, replace) from `a` to `b`, case ignored.
size_t edit_distance(std::string_view a, std::string_view b) {
  auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); j++) row[j] = j;
  for (size_t i = 1; i <= a.size(); i++) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); j++) {
      const size_t replaced = diagonal + (lower(a[i - 1]) == lower(b[j - 1]) ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

std::vector<std::string> near_names(std::string_view wanted,
                                    const std::vector<std::string>& names) {
  std::vector<std::pair<size_t, std::string>> near;
  for (const std::string& name : names) {
    const size_t distance = edit_distance(wanted, name);
    const bool part = name.find(wanted) != std::string::npos || wanted.find(name) != wanted.npos;
    if (part || distance <= std::max<size_t>(2, wanted.size() / 3))
      near.emplace_back(distance, name);
  }
  std::sort(near.begin(), near.end());
  std::vector<std::string> nearest;
  for (auto& [distance, name] : near) nearest.push_back(std::move(name));
  return nearest;
}

}  // namespace fastserve
