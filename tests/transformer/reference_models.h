// Where the tests find models with their recorded truth.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "base/file.h"

namespace fastserve {

/// The subset under tests/data, or the whole set where it is: in the directory that
/// FASTSERVE_REFERENCE names, or beside the source tree.
inline std::vector<Path> reference_models() {
  std::vector<Path> roots;
  if (const char* named = std::getenv("FASTSERVE_REFERENCE")) roots.emplace_back(named);
  roots.push_back(Path(FASTSERVE_SOURCE_DIR) / "../shared/reference");
  roots.push_back(Path(FASTSERVE_SOURCE_DIR) / "tests/data/reference");
  for (const Path& root : roots) {
    std::error_code error;
    std::vector<Path> models;
    for (const auto& entry : std::filesystem::directory_iterator(root / "models", error))
      if (std::filesystem::exists(entry.path() / "reference.json")) models.push_back(entry.path());
    std::sort(models.begin(), models.end());
    if (!models.empty()) return models;
  }
  return {};
}

}  // namespace fastserve
