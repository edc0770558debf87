// What the catalogue holds, as bytes: little-endian, each record with its own version byte first.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "base/result.h"
#include "model/tensor.h"
#include "store/store.h"

namespace fastserve {

/// Pieces are checked in blocks of this many bytes.
inline constexpr uint64_t kBlockBytes = uint64_t{1} << 20;
/// A tensor above this size is cut into pieces of it, each an extent of its own; smaller tensors
/// are grouped into extents that are closed once they reach it (so at most twice as large).
inline constexpr uint64_t kPieceBytes = uint64_t{64} << 20;

/// "piece/HASH": where a piece of content lies, and how many versions use it.
struct PieceRecord {
  uint32_t versions = 0;
  Hash128 extent;
  uint64_t offset = 0, bytes = 0;
  std::vector<uint64_t> checksums;  ///< hash64 of each block

  std::string encode() const;
  static Result<PieceRecord> decode(std::string_view bytes, const std::string& key);
};

/// "extent/HASH": a file below extents/, alive while any piece in it is.
struct ExtentRecord {
  uint64_t bytes = 0;
  uint32_t pieces = 0;

  std::string encode() const;
  static Result<ExtentRecord> decode(std::string_view bytes, const std::string& key);
};

/// One document or tensor of a version: the pieces whose bytes follow each other.
struct ManifestEntry {
  std::string name;
  bool document = false;
  DType dtype = DType::kU8;
  std::vector<int64_t> shape;
  uint64_t bytes = 0;
  std::vector<Hash128> pieces;
};

/// "manifest/NAME/VERSION": the entries of a version in the order a model reads them.
struct Manifest {
  std::vector<ManifestEntry> entries;

  std::string encode() const;
  static Result<Manifest> decode(std::string_view bytes, const std::string& key);
};

/// "version/NAME/VERSION": what is known of a version without its manifest. JSON.
struct VersionRecord {
  int64_t created_unix = 0;
  uint64_t bytes = 0;
  Lineage lineage;
  std::string architecture, weight_format;
  int64_t parameters = 0;

  std::string encode() const;
  static Result<VersionRecord> decode(std::string_view bytes, const std::string& key);
};

/// "name/NAME": where a name points. `current` 0: every version was removed; the highest number is
/// remembered, so that the next version of this name does not take an old one's. JSON.
struct NameRecord {
  uint64_t current = 0, highest = 0;

  std::string encode() const;
  static Result<NameRecord> decode(std::string_view bytes, const std::string& key);
};

std::string name_key(std::string_view name);
std::string tag_key(std::string_view name, std::string_view tag);
std::string version_key(std::string_view name, uint64_t version);
std::string manifest_key(std::string_view name, uint64_t version);
std::string piece_key(const Hash128& hash);
std::string extent_key(const Hash128& hash);
/// "arrived/HASH": a piece that came from another store for a version that is not whole yet; when
/// it came, as a number. Its piece record has no versions.
std::string arrived_key(const Hash128& hash);
/// The hash that hex() wrote; kCorrupt names `where`.
Result<Hash128> parse_hash(std::string_view hex, const std::string& where);
/// The version that ends a version_key; kCorrupt when it does not.
Result<uint64_t> version_of_key(std::string_view key);

}  // namespace fastserve
