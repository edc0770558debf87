// Pieces of checkpoints from a disk that one cannot trust, and manifests that name them: any bytes,
// and any whose checksums hold. What is taken has the size it says and joins without gaps.
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/hash.h"
#include "train/piece_store.h"

using namespace fastserve;

namespace {

void check_piece(std::span<const std::byte> bytes) {
  const auto piece = parse_piece(bytes, "", "fuzz");
  if (!piece.ok()) {
    FS_CHECK(piece.error().code == ErrorCode::kCorrupt);
    return;
  }
  const uint64_t n = piece->name.end - piece->name.begin;
  FS_CHECK(piece->weights.size() == n && piece->m.size() == n && piece->v.size() == n);
  FS_CHECK(piece->best.empty() || piece->best.size() == n);
  FS_CHECK(bytes.size() >= 3 * n * sizeof(float));
  uint64_t sum = 0;  // every byte that it names is there
  for (const auto run : {piece->weights, piece->m, piece->v, piece->best})
    sum += hash64(std::as_bytes(run));
  FS_CHECK(parse_piece(bytes, hash128(bytes.first(bytes.size() - 16)).hex(), "fuzz").ok());
  FS_CHECK(sum != 0 && !parse_piece(bytes, std::string(32, '0'), "fuzz").ok());
}

/// `data` behind a header that is one, and before its checksum.
std::vector<std::byte> framed(std::span<const std::byte> data) {
  std::vector<std::byte> bytes(8 + data.size());
  std::memcpy(bytes.data(), "FSPIECE1", 8);
  std::memcpy(bytes.data() + 8, data.data(), data.size());
  const Hash128 hash = hash128(bytes);
  const auto sum = std::as_bytes(std::span(&hash, 1));
  bytes.insert(bytes.end(), sum.begin(), sum.end());
  return bytes;
}

void check_manifest(std::string_view text) {
  const auto json = Json::parse(text, "fuzz");
  if (!json.ok()) return;
  const auto set = PieceSet::from_json(*json, "fuzz");
  if (!set.ok()) return;
  uint64_t at = 0;
  for (const PieceSet::Piece& piece : set->pieces) {
    FS_CHECK(piece.begin == at && piece.end > at && !piece.holders.empty());
    at = piece.end;
  }
  FS_CHECK(at == set->elements() && at > 0);
  const auto again = PieceSet::from_json(set->to_json(), "fuzz");
  FS_CHECK(again.ok() && again->to_json() == set->to_json());
  PieceHoldings nobody;
  FS_CHECK(judge("job", *set, nobody).kind == PieceVerdict::Kind::kAway);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // In memory of its own, as aligned as a map of a file.
  const auto* first = reinterpret_cast<const std::byte*>(data);
  check_piece(std::vector<std::byte>(first, first + size));
  check_piece(framed({first, size}));
  check_manifest({reinterpret_cast<const char*>(data), size});
  return 0;
}
