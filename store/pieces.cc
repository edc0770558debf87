#include "store/pieces.h"

#include <algorithm>

#include "store/extent_reader.h"

namespace fastserve {

std::vector<uint64_t> block_checksums(std::span<const std::byte> piece) {
  std::vector<uint64_t> checksums;
  for (size_t begin = 0; begin < piece.size(); begin += kBlockBytes)
    checksums.push_back(hash64(piece.subspan(begin, std::min(kBlockBytes, piece.size() - begin))));
  return checksums;
}

bool piece_is_sound(const Path& root, const PieceRecord& record) {
  ReadEntry entry;
  entry.pieces = {record};
  return read_entry(root, "", entry, nullptr).ok();
}

}  // namespace fastserve
