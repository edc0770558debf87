// Remembers how short runs of symbols were merged, within one call of encode().
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace fastserve {

/// Bounded: it stops learning after kMostEntries; runs longer than kLongest are not kept.
class ChunkCache {
 public:
  static constexpr size_t kLongest = 32;

  /// The merged form of `leaves`; valid until the next insert.
  std::optional<std::span<const int32_t>> find(std::span<const int32_t> leaves) const;
  void insert(std::span<const int32_t> leaves, std::span<const int32_t> merged);

 private:
  static constexpr size_t kMostEntries = 1 << 16;
  struct Entry {
    uint64_t hash = 0;
    uint32_t begin = 0;               ///< in ids_: the leaves, then the merged form
    uint16_t leaves = 0, merged = 0;  ///< leaves == 0: free
  };
  size_t find_entry(uint64_t hash, std::span<const int32_t> leaves) const;
  void grow();

  std::vector<Entry> entries_;
  std::vector<int32_t> ids_;
  size_t used_ = 0;
};

}  // namespace fastserve
