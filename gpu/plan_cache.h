// What a library's search found best, kept on disk for the next start.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "base/file.h"

namespace fastserve::gpu {

/// One library's opaque choice: cublasLtMatmulAlgo_t, as it lies in memory.
using PlanBytes = std::array<uint64_t, 8>;

/// Plans by shape, for one card and one version of one library.
///
/// Threads:  one caller at a time. Two processes may write the same file: the last one's plans
/// stay. Promises: a file of another card or version, a damaged one or none is an empty cache,
/// never an
///           error: a plan can always be found again. Whoever uses a plan checks it first.
class PlanCache {
 public:
  /// `folder` empty: in memory alone. `library` and `card` are in the file's name and inside.
  PlanCache(const Path& folder, std::string library, std::string card);

  std::optional<PlanBytes> find(const std::string& shape) const;
  /// Keeps it, and writes the file anew; what the disk refuses is lost at the end of the process.
  void put(const std::string& shape, const PlanBytes& plan);
  size_t size() const { return plans_.size(); }

  /// The file's bytes and back: nothing unless they are whole and of this library and card.
  std::string text() const;
  void take(std::string_view text);

 private:
  Path file_;
  std::string library_, card_;
  std::map<std::string, PlanBytes> plans_;
};

}  // namespace fastserve::gpu
