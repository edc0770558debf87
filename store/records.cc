#include "store/records.h"

#include <fmt/format.h>

#include <bit>
#include <charconv>
#include <cstring>

namespace fastserve {
namespace {

static_assert(std::endian::native == std::endian::little, "records are little-endian");

constexpr uint8_t kRecordVersion = 1;

Error damaged(const std::string& key) {
  return {ErrorCode::kCorrupt, "the record contradicts its format", "catalogue record " + key,
          "restore the store from a backup, or remove this version"};
}

class Writer {
 public:
  Writer() { put(kRecordVersion); }
  template <class T>
  void put(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void put_hash(const Hash128& hash) { put(hash.high), put(hash.low); }
  void put_text(std::string_view text) {
    put(static_cast<uint32_t>(text.size()));
    out_.append(text);
  }
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
};

/// Reads what Writer wrote; after a read past the end every value is zero and ok() is false.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {
    ok_ = get<uint8_t>() == kRecordVersion && ok_;
  }
  template <class T>
  T get() {
    T value{};
    if (rest_.size() < sizeof value) {
      ok_ = false;
      rest_ = {};
      return value;
    }
    std::memcpy(&value, rest_.data(), sizeof value);
    rest_.remove_prefix(sizeof value);
    return value;
  }
  Hash128 get_hash() {
    const auto high = get<uint64_t>();
    return {high, get<uint64_t>()};
  }
  std::string get_text() {
    const auto size = get<uint32_t>();
    if (rest_.size() < size) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    std::string text(rest_.substr(0, size));
    rest_.remove_prefix(size);
    return text;
  }
  /// A count of items of at least `item_bytes` each that can still follow.
  size_t get_count(size_t item_bytes) {
    const auto count = get<uint32_t>();
    if (count <= rest_.size() / item_bytes) return count;
    ok_ = false;
    return 0;
  }
  bool ok() const { return ok_; }
  bool finished() const { return ok_ && rest_.empty(); }

 private:
  std::string_view rest_;
  bool ok_ = true;
};

}  // namespace

std::string PieceRecord::encode() const {
  Writer out;
  out.put(versions);
  out.put_hash(extent);
  out.put(offset);
  out.put(bytes);
  out.put(static_cast<uint32_t>(checksums.size()));
  for (const uint64_t checksum : checksums) out.put(checksum);
  return out.take();
}

Result<PieceRecord> PieceRecord::decode(std::string_view bytes, const std::string& key) {
  Reader in(bytes);
  PieceRecord record;
  record.versions = in.get<uint32_t>();
  record.extent = in.get_hash();
  record.offset = in.get<uint64_t>();
  record.bytes = in.get<uint64_t>();
  record.checksums.resize(in.get_count(sizeof(uint64_t)));
  for (uint64_t& checksum : record.checksums) checksum = in.get<uint64_t>();
  if (!in.finished() || record.bytes == 0 || record.bytes > kPieceBytes ||
      record.checksums.size() != (record.bytes + kBlockBytes - 1) / kBlockBytes)
    return damaged(key);
  return record;
}

std::string ExtentRecord::encode() const {
  Writer out;
  out.put(bytes);
  out.put(pieces);
  return out.take();
}

Result<ExtentRecord> ExtentRecord::decode(std::string_view bytes, const std::string& key) {
  Reader in(bytes);
  ExtentRecord record;
  record.bytes = in.get<uint64_t>();
  record.pieces = in.get<uint32_t>();
  if (!in.finished()) return damaged(key);
  return record;
}

std::string Manifest::encode() const {
  Writer out;
  out.put(static_cast<uint32_t>(entries.size()));
  for (const ManifestEntry& entry : entries) {
    out.put_text(entry.name);
    out.put(static_cast<uint8_t>(entry.document));
    out.put_text(entry.document ? "" : dtype_name(entry.dtype));
    out.put(static_cast<uint32_t>(entry.shape.size()));
    for (const int64_t size : entry.shape) out.put(size);
    out.put(entry.bytes);
    out.put(static_cast<uint32_t>(entry.pieces.size()));
    for (const Hash128& piece : entry.pieces) out.put_hash(piece);
  }
  return out.take();
}

Result<Manifest> Manifest::decode(std::string_view bytes, const std::string& key) {
  Reader in(bytes);
  Manifest manifest;
  manifest.entries.resize(in.get_count(25));
  for (ManifestEntry& entry : manifest.entries) {
    entry.name = in.get_text();
    entry.document = in.get<uint8_t>() != 0;
    const std::string dtype = in.get_text();
    if (!entry.document) {
      FS_ASSIGN(entry.dtype, parse_dtype(dtype));
    }
    entry.shape.resize(in.get_count(sizeof(int64_t)));
    for (int64_t& size : entry.shape) size = in.get<int64_t>();
    entry.bytes = in.get<uint64_t>();
    entry.pieces.resize(in.get_count(sizeof(Hash128)));
    for (Hash128& piece : entry.pieces) piece = in.get_hash();
    if (!in.ok() || entry.pieces.size() != (entry.bytes + kPieceBytes - 1) / kPieceBytes)
      return damaged(key);
  }
  if (!in.finished()) return damaged(key);
  return manifest;
}

std::string VersionRecord::encode() const {
  return Json::object({{"created", created_unix},
                       {"bytes", bytes},
                       {"made_by", lineage.made_by},
                       {"parent", lineage.parent},
                       {"details", lineage.details},
                       {"architecture", architecture},
                       {"weight_format", weight_format},
                       {"parameters", parameters}})
      .dump();
}

Result<VersionRecord> VersionRecord::decode(std::string_view bytes, const std::string& key) {
  FS_ASSIGN(const Json json, Json::parse(bytes, "catalogue record " + key));
  VersionRecord record;
  FS_ASSIGN(record.created_unix, json.int_or("created", 0));
  FS_ASSIGN(const int64_t size, json.int_or("bytes", 0));
  record.bytes = static_cast<uint64_t>(size);
  FS_ASSIGN(record.lineage.made_by, json.string_or("made_by", ""));
  FS_ASSIGN(record.lineage.parent, json.string_or("parent", ""));
  if (const Json* details = json.find("details")) record.lineage.details = *details;
  FS_ASSIGN(record.architecture, json.string_or("architecture", ""));
  FS_ASSIGN(record.weight_format, json.string_or("weight_format", ""));
  FS_ASSIGN(record.parameters, json.int_or("parameters", 0));
  return record;
}

std::string NameRecord::encode() const {
  return Json::object({{"current", current}, {"highest", highest}}).dump();
}

Result<NameRecord> NameRecord::decode(std::string_view bytes, const std::string& key) {
  FS_ASSIGN(const Json json, Json::parse(bytes, "catalogue record " + key));
  FS_ASSIGN(const int64_t current, json.int_or("current", 0));
  FS_ASSIGN(const int64_t highest, json.int_or("highest", 0));
  return NameRecord{static_cast<uint64_t>(current), static_cast<uint64_t>(highest)};
}

std::string name_key(std::string_view name) { return fmt::format("name/{}", name); }
std::string tag_key(std::string_view name, std::string_view tag) {
  return fmt::format("tag/{}/{}", name, tag);
}
std::string version_key(std::string_view name, uint64_t version) {
  return fmt::format("version/{}/{:016}", name, version);
}
std::string manifest_key(std::string_view name, uint64_t version) {
  return fmt::format("manifest/{}/{:016}", name, version);
}
std::string piece_key(const Hash128& hash) { return "piece/" + hash.hex(); }
std::string extent_key(const Hash128& hash) { return "extent/" + hash.hex(); }
std::string arrived_key(const Hash128& hash) { return "arrived/" + hash.hex(); }

Result<Hash128> parse_hash(std::string_view hex, const std::string& where) {
  Hash128 hash;
  const auto parse = [](std::string_view digits, uint64_t& value) {
    const char* end = digits.data() + digits.size();
    const auto result = std::from_chars(digits.data(), end, value, 16);
    return result.ec == std::errc() && result.ptr == end;
  };
  if (hex.size() != 32 || !parse(hex.substr(0, 16), hash.high) || !parse(hex.substr(16), hash.low))
    return damaged(where);
  return hash;
}

Result<uint64_t> version_of_key(std::string_view key) {
  const std::string_view digits = key.substr(key.rfind('/') + 1);
  uint64_t version = 0;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), version);
  if (result.ec != std::errc() || version == 0) return damaged(std::string(key));
  return version;
}

}  // namespace fastserve
