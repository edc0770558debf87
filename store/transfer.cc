#include "store/transfer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

namespace fastserve {
namespace {

constexpr size_t kLongestName = 512, kMostDimensions = 16;
constexpr uint64_t kMostBytes = uint64_t{1} << 50;

Error malformed(const std::string& what) {
  return {ErrorCode::kCorrupt, what, "a model's listing",
          "the peer may be of another version, or no FastServe"};
}

void put_text(std::string& out, std::string_view text) {
  const auto size = static_cast<uint32_t>(text.size());
  out.append(reinterpret_cast<const char*>(&size), sizeof size);
  out.append(text);
}

Result<std::string_view> take_text(std::string_view& rest) {
  uint32_t size = 0;
  if (rest.size() < sizeof size) return malformed("ends in the middle");
  std::memcpy(&size, rest.data(), sizeof size);
  rest.remove_prefix(sizeof size);
  if (rest.size() < size) return malformed("ends in the middle");
  const std::string_view text = rest.substr(0, size);
  rest.remove_prefix(size);
  return text;
}

Status check_entry(const ManifestEntry& entry) {
  if (entry.name.empty() || entry.name.size() > kLongestName)
    return malformed(fmt::format("names something with {} bytes", entry.name.size()));
  if (entry.bytes > (entry.document ? kMostDocumentBytes : kMostBytes))
    return malformed(fmt::format("gives {} bytes to one of its parts", entry.bytes));
  if (entry.document) return {};
  if (entry.shape.size() > kMostDimensions)
    return malformed(fmt::format("gives a tensor {} dimensions", entry.shape.size()));
  uint64_t bytes = dtype_bytes(entry.dtype);
  for (const int64_t size : entry.shape) {
    if (size < 0 || static_cast<uint64_t>(size) > kMostBytes)
      return malformed(fmt::format("gives a tensor the size {}", size));
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes) || bytes > kMostBytes)
      return malformed("gives a tensor more bytes than there are");
  }
  if (bytes != entry.bytes) return malformed("gives a tensor another size than its shape does");
  return {};
}

Status check_manifest(const Manifest& manifest, uint64_t& total) {
  std::set<std::string> names;
  std::map<Hash128, uint64_t> sizes;
  for (const ManifestEntry& entry : manifest.entries) {
    FS_TRY(check_entry(entry));
    if (!names.insert((entry.document ? "d/" : "t/") + entry.name).second)
      return malformed("has two parts of one name");
    total += entry.bytes;
    if (total > kMostBytes) return malformed("is larger than any disk");
    for (size_t i = 0; i < entry.pieces.size(); i++) {
      const uint64_t bytes = std::min(kPieceBytes, entry.bytes - i * kPieceBytes);
      const auto [at, fresh] = sizes.emplace(entry.pieces[i], bytes);
      if (at->second != bytes) return malformed("gives one piece two sizes");
    }
  }
  return {};
}

}  // namespace

std::vector<ModelListing::Piece> ModelListing::pieces() const {
  std::vector<Piece> all;
  std::map<Hash128, size_t> known;
  for (const ManifestEntry& entry : manifest.entries)
    for (size_t i = 0; i < entry.pieces.size(); i++) {
      const auto [at, fresh] = known.emplace(entry.pieces[i], all.size());
      const bool alone = entry.pieces.size() > 1;
      if (fresh)
        all.push_back(
            {entry.pieces[i], std::min(kPieceBytes, entry.bytes - i * kPieceBytes), alone});
      else
        all[at->second].alone |= alone;
    }
  return all;
}

std::string ModelListing::encode() const {
  std::string out;
  put_text(out, ref.text());
  put_text(out, about.encode());
  return out + manifest.encode();
}

Result<ModelListing> ModelListing::decode(std::string_view bytes) {
  if (bytes.size() > kMostListingBytes)
    return malformed(
        fmt::format("has {} bytes, and the limit is {}", bytes.size(), kMostListingBytes));
  ModelListing listing;
  FS_ASSIGN(const std::string_view ref, take_text(bytes));
  FS_ASSIGN(listing.ref, ModelRef::parse(ref));
  if (listing.ref.version == 0) return malformed("names no version");
  FS_ASSIGN(const std::string_view about, take_text(bytes));
  FS_ASSIGN(listing.about, VersionRecord::decode(about, "of a model's listing"));
  auto manifest = Manifest::decode(bytes, "of a model's listing");
  if (!manifest.ok()) return malformed("contradicts its format");
  listing.manifest = std::move(*manifest);
  listing.about.bytes = 0;
  FS_TRY(check_manifest(listing.manifest, listing.about.bytes));
  return listing;
}

}  // namespace fastserve
