// Where tests find the reference files: the whole set when it is there, else the part kept in
// tests/data.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/file.h"

namespace fastserve {

/// A folder of the test's own, removed afterwards.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "fastserve_test_XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  Path operator/(const std::string& name) const { return path_ / name; }

 private:
  Path path_;
};

inline Path reference_directory() {
  if (const char* named = std::getenv("FASTSERVE_REFERENCE")) return named;
  const Path source = FASTSERVE_SOURCE_DIR;
  const Path whole = source.parent_path() / "shared" / "reference";
  if (std::filesystem::exists(whole / "README.md")) return whole;
  return source / "tests" / "data" / "reference";
}

}  // namespace fastserve
