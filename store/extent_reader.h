// Reads a version's tensors: mapped, read ahead in manifest order, checked block by block.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "model/tensor.h"
#include "store/records.h"

namespace fastserve {

/// A tensor or document to read, with the records of its pieces.
struct ReadEntry {
  ManifestEntry entry;
  std::vector<PieceRecord> pieces;
};

/// Something that lives as long as the tensors do: what keeps a version from being removed.
struct Lease {};

/// The tensors of one version. A first call of tensor() starts two threads that page in and check
/// everything in manifest order; a call waits for no more than its own tensor. glance() reads
/// nothing. What was checked is not checked again, but by those that are taken anew().
///
/// Mapped rather than read with O_DIRECT: as fast when the bytes are cold (the pages are populated
/// in 8 MiB runs by several threads), ten times faster when they are not, and the kernel can take
/// the memory back once a device has its own copy.
///
/// Owns:     its maps and threads, until destroyed. `lease` is kept as long.
/// Refuses:  a missing or short extent, an unreadable block or a wrong checksum: kCorrupt with the
///           tensor, the extent file and the block's offset.
std::shared_ptr<const TensorSource> open_stored_tensors(const Path& root, std::string where,
                                                        std::vector<ReadEntry> entries,
                                                        std::shared_ptr<Lease> lease);

/// Reads an entry from the disk itself where the file system allows (O_DIRECT), and checks each
/// block. With `out`, appends the bytes to it.
Status read_entry(const Path& root, const std::string& where, const ReadEntry& entry,
                  std::string* out);

}  // namespace fastserve
