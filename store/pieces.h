// Pieces of content: their checksums, and whether the disk still holds them.
#pragma once

#include <span>
#include <vector>

#include "base/file.h"
#include "store/records.h"

namespace fastserve {

/// hash64 of each block.
std::vector<uint64_t> block_checksums(std::span<const std::byte> piece);

/// Whether the disk still holds what the record says. Reading it costs what writing it again would,
/// and nothing is shared that is already lost.
bool piece_is_sound(const Path& root, const PieceRecord& record);

}  // namespace fastserve
