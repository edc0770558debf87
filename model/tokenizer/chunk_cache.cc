#include "model/tokenizer/chunk_cache.h"

#include <algorithm>

#include "base/hash.h"

namespace fastserve {
namespace {

uint64_t hash_of(std::span<const int32_t> ids) { return hash64(std::as_bytes(ids)); }

}  // namespace

size_t ChunkCache::find_entry(uint64_t hash, std::span<const int32_t> leaves) const {
  const size_t mask = entries_.size() - 1;
  size_t at = hash & mask;
  for (; entries_[at].leaves != 0; at = (at + 1) & mask) {
    const Entry& entry = entries_[at];
    if (entry.hash == hash && entry.leaves == leaves.size() &&
        std::equal(leaves.begin(), leaves.end(), ids_.begin() + entry.begin))
      break;
  }
  return at;
}

std::optional<std::span<const int32_t>> ChunkCache::find(std::span<const int32_t> leaves) const {
  if (entries_.empty() || leaves.size() > kLongest) return std::nullopt;
  const Entry& entry = entries_[find_entry(hash_of(leaves), leaves)];
  if (entry.leaves == 0) return std::nullopt;
  return std::span(ids_).subspan(entry.begin + entry.leaves, entry.merged);
}

void ChunkCache::insert(std::span<const int32_t> leaves, std::span<const int32_t> merged) {
  if (leaves.empty() || leaves.size() > kLongest || used_ >= kMostEntries) return;
  if (used_ * 2 >= entries_.size()) grow();
  const uint64_t hash = hash_of(leaves);
  Entry& entry = entries_[find_entry(hash, leaves)];
  if (entry.leaves != 0) return;
  entry = {hash, static_cast<uint32_t>(ids_.size()), static_cast<uint16_t>(leaves.size()),
           static_cast<uint16_t>(merged.size())};
  ids_.insert(ids_.end(), leaves.begin(), leaves.end());
  ids_.insert(ids_.end(), merged.begin(), merged.end());
  used_++;
}

void ChunkCache::grow() {
  std::vector<Entry> old(std::max<size_t>(256, entries_.size() * 2));
  old.swap(entries_);
  const size_t mask = entries_.size() - 1;
  for (const Entry& entry : old) {
    if (entry.leaves == 0) continue;
    size_t at = entry.hash & mask;
    while (entries_[at].leaves != 0) at = (at + 1) & mask;
    entries_[at] = entry;
  }
}

}  // namespace fastserve
