#include "net/bulk_frame.h"

#include <bit>
#include <cstring>
#include <span>

#include "base/hash.h"

namespace fastserve {
namespace {

static_assert(std::endian::native == std::endian::little, "frames are copied as they lie");

constexpr uint32_t kMagic = 0x31425346;  // "FSB1"
constexpr size_t kHashed = BulkFrame::kBytes - sizeof(uint64_t);

/// Copies fields to or from consecutive bytes.
template <class Copy>
void each_field(BulkFrame& f, uint32_t& magic, uint32_t& kind, const Copy& copy) {
  copy(magic), copy(kind);
  copy(f.message), copy(f.tag.kind), copy(f.tag.job), copy(f.tag.step), copy(f.tag.key);
  copy(f.total), copy(f.offset), copy(f.length), copy(f.turn);
  copy(f.checksum);
}

uint64_t hash_of(const BulkFrame::Bytes& bytes) { return hash64(std::span(bytes).first(kHashed)); }

}  // namespace

BulkFrame::Bytes BulkFrame::encode() const {
  Bytes bytes;
  size_t at = 0;
  BulkFrame copy = *this;
  uint32_t magic = kMagic, kind_word = static_cast<uint32_t>(kind);
  each_field(copy, magic, kind_word, [&](const auto& field) {
    std::memcpy(bytes.data() + at, &field, sizeof field);
    at += sizeof field;
  });
  FS_CHECK(at == kHashed);
  const uint64_t hash = hash_of(bytes);
  std::memcpy(bytes.data() + at, &hash, sizeof hash);
  return bytes;
}

Result<BulkFrame> BulkFrame::decode(const Bytes& bytes) {
  BulkFrame frame;
  size_t at = 0;
  uint32_t magic = 0, kind_word = 0;
  each_field(frame, magic, kind_word, [&](auto& field) {
    std::memcpy(&field, bytes.data() + at, sizeof field);
    at += sizeof field;
  });
  uint64_t hash = 0;
  std::memcpy(&hash, bytes.data() + at, sizeof hash);
  if (magic != kMagic || hash != hash_of(bytes) || kind_word < 1 || kind_word > 3)
    return Error{ErrorCode::kCorrupt, "sent what is no frame of a bulk lane", "", ""};
  frame.kind = static_cast<Kind>(kind_word);
  return frame;
}

}  // namespace fastserve
