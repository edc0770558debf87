#include "store/disk_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <set>

#include "store/extent_writer.h"
#include "store/names.h"
#include "store/reserve.h"

namespace fastserve {
namespace {

constexpr uint64_t kFormat = 1;
constexpr std::string_view kFormatWords = "fastserve store, format ";

/// Writes the format file of a new store, or reads an old one's.
Status check_format(const Path& root) {
  const Path path = root / "format";
  const Result<std::string> text = read_file(path, 256);
  if (!text.ok() && text.error().code != ErrorCode::kNotFound) return text.error();
  if (!text.ok()) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(root, error)) {
      const std::string name = entry.path().filename();
      if (name != "lock" && name != "format.tmp")
        return Error{ErrorCode::kInvalidArgument, fmt::format("is no store: it holds {}", name),
                     root.string(), "name a new or empty folder"};
    }
    return write_file_atomically(path, fmt::format("{}{}\n", kFormatWords, kFormat));
  }
  uint64_t format = 0;
  if (text->starts_with(kFormatWords))
    std::from_chars(text->data() + kFormatWords.size(), text->data() + text->size(), format);
  if (format == kFormat) return {};
  if (format == 0)
    return Error{ErrorCode::kCorrupt, "is not a store's format file", path.string(),
                 "restore this folder from a backup"};
  return Error{ErrorCode::kUnsupported,
               fmt::format("the store has format {}, this build reads format {}", format, kFormat),
               root.string(), "use a newer fastserve, or another --store"};
}

/// What the lock says, in a store's words: its holder is at work, and often for hours.
Result<FileLock> lock_store(const Path& root) {
  auto lock = FileLock::acquire(root / "lock");
  if (lock.ok() || lock.error().code != ErrorCode::kUnavailable) return lock;
  Error error = lock.error();
  error.hint = "wait until it is done, or use another --store";
  return error;
}

}  // namespace

Result<std::unique_ptr<Store>> Store::open(const Path& root, const Options& options) {
  std::error_code error;
  const Path absolute = std::filesystem::absolute(root, error).lexically_normal();
  if (options.glance) {
    FS_ASSIGN(auto catalogue, Catalogue::open_for_reading(absolute));
    return std::unique_ptr<Store>(
        new DiskStore(absolute, std::nullopt, std::move(catalogue), options.clock));
  }
  FS_TRY(make_directories(absolute));
  FS_TRY(spend_reserve(absolute));
  FS_ASSIGN(FileLock lock, lock_store(absolute));
  FS_TRY(check_format(absolute));
  FS_TRY(make_directories(absolute / "extents"));
  FS_TRY(make_directories(absolute / "tmp"));
  FS_ASSIGN(auto catalogue, Catalogue::open(absolute));
  auto store =
      std::make_unique<DiskStore>(absolute, std::move(lock), std::move(catalogue), options.clock);
  FS_TRY(store->clean());
  keep_reserve(absolute);
  return std::unique_ptr<Store>(std::move(store));
}

Status DiskStore::require_lock() const {
  if (lock_) return {};
  return Error{ErrorCode::kUnavailable, "was opened to look at names only", root_.string(), ""};
}

Status DiskStore::clean() {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(root_ / "tmp", error))
    std::filesystem::remove_all(entry.path(), error);
  FS_ASSIGN(const auto records, catalogue_->scan("extent/"));
  std::set<std::string> known;
  for (const auto& [key, value] : records) known.insert(key.substr(std::strlen("extent/")));
  for (const auto& entry : std::filesystem::directory_iterator(root_ / "extents", error))
    if (!known.contains(entry.path().filename())) std::filesystem::remove(entry.path(), error);
  constexpr int64_t kWeek = 7 * 24 * 3600;
  return drop_arrived(kWeek, {});
}

Result<PieceRecord> DiskStore::need_piece(const Hash128& hash) const {
  FS_ASSIGN(const std::optional<std::string> bytes, catalogue_->get(piece_key(hash)));
  if (!bytes)
    return Error{ErrorCode::kCorrupt, "the record is missing",
                 "catalogue record " + piece_key(hash),
                 "restore the store from a backup, or remove this version"};
  return PieceRecord::decode(*bytes, piece_key(hash));
}

Result<ReadEntry> DiskStore::read_entry_of(ManifestEntry entry, const std::string& where) const {
  ReadEntry read{std::move(entry), {}};
  uint64_t bytes = 0;
  for (size_t i = 0; i < read.entry.pieces.size(); i++) {
    FS_ASSIGN(PieceRecord piece, need_piece(read.entry.pieces[i]));
    bytes += piece.bytes;
    read.pieces.push_back(std::move(piece));
  }
  // With the count of pieces (checked by decode) this pins the size of every piece.
  uint64_t elements = 1;
  for (const int64_t size : read.entry.shape) elements *= static_cast<uint64_t>(size);
  const bool shaped = read.entry.document || elements * dtype_bytes(read.entry.dtype) == bytes;
  bool full = true;
  for (size_t i = 0; i + 1 < read.pieces.size(); i++)
    full = full && read.pieces[i].bytes == kPieceBytes && read.pieces[i].offset == 0;
  if (bytes == read.entry.bytes && shaped && full) return read;
  return Error{ErrorCode::kCorrupt,
               fmt::format("the pieces of {} do not add up to it", read.entry.name), where,
               "restore the store from a backup, or remove this version"};
}

Result<DiskStore::Opened> DiskStore::open_entries(const ModelRef& wanted) const {
  FS_TRY(require_lock());
  const std::lock_guard names(names_);
  Opened opened;
  FS_ASSIGN(opened.ref, resolve(wanted));
  const std::string key = manifest_key(opened.ref.name, opened.ref.version);
  const std::string about_key = version_key(opened.ref.name, opened.ref.version);
  FS_ASSIGN(const std::optional<std::string> about, catalogue_->get(about_key));
  FS_ASSIGN(VersionRecord version, VersionRecord::decode(about.value_or(""), about_key));
  opened.lineage = std::move(version.lineage);
  FS_ASSIGN(const std::optional<std::string> bytes, catalogue_->get(key));
  FS_ASSIGN(Manifest manifest, Manifest::decode(bytes.value_or(""), key));
  for (ManifestEntry& entry : manifest.entries) {
    FS_ASSIGN(ReadEntry read, read_entry_of(std::move(entry), opened.ref.text()));
    opened.entries.push_back(std::move(read));
  }
  opened.lease = leases_[key].lock();
  if (!opened.lease) leases_[key] = opened.lease = std::make_shared<Lease>();
  return opened;
}

Result<StoredModel> DiskStore::open_model(const ModelRef& ref) {
  FS_ASSIGN(Opened opened, open_entries(ref));
  StoredModel model;
  model.ref = opened.ref;
  model.lineage = std::move(opened.lineage);
  std::vector<ReadEntry> tensors;
  for (ReadEntry& read : opened.entries) {
    if (!read.entry.document) {
      tensors.push_back(std::move(read));
      continue;
    }
    std::string text;
    text.reserve(read.entry.bytes);
    FS_TRY(read_entry(root_, opened.ref.text(), read, &text));
    model.bundle.documents.emplace(read.entry.name, std::move(text));
  }
  model.bundle.tensors =
      open_stored_tensors(root_, opened.ref.text(), std::move(tensors), std::move(opened.lease));
  return model;
}

Status DiskStore::verify(const ModelRef& ref, const std::function<void(double)>& progress,
                         const CancelFlag* cancel) {
  FS_ASSIGN(const Opened opened, open_entries(ref));
  uint64_t total = 0, done = 0;
  for (const ReadEntry& read : opened.entries) total += read.entry.bytes;
  for (const ReadEntry& read : opened.entries) {
    if (cancel != nullptr && cancel->raised())
      return Error{ErrorCode::kCancelled, "the check was stopped", opened.ref.text(), ""};
    FS_TRY(read_entry(root_, opened.ref.text(), read, nullptr));
    done += read.entry.bytes;
    if (progress && total > 0) progress(static_cast<double>(done) / static_cast<double>(total));
  }
  return {};
}

Status DiskStore::release_piece(const Hash128& hash, Changes& changes, Dead& dead) const {
  // What an earlier release in the same group changed counts, not what the catalogue holds.
  const std::string key = piece_key(hash);
  FS_ASSIGN(const std::string bytes, current(key, changes));
  FS_ASSIGN(PieceRecord piece, PieceRecord::decode(bytes, key));
  if (piece.versions > 1) {
    piece.versions--;
    changes[key] = piece.encode();
    return {};
  }
  changes[key] = std::nullopt;
  const std::string holder = extent_key(piece.extent);
  FS_ASSIGN(const std::string extent_bytes, current(holder, changes));
  FS_ASSIGN(ExtentRecord extent, ExtentRecord::decode(extent_bytes, holder));
  if (--extent.pieces > 0) {
    changes[holder] = extent.encode();
    dead.pieces.push_back(std::move(piece));
  } else {
    changes[holder] = std::nullopt;
    dead.extents.push_back(piece.extent);
  }
  return {};
}

Result<std::string> DiskStore::current(const std::string& key, const Changes& changes) const {
  if (const auto changed = changes.find(key); changed != changes.end())
    return changed->second.value_or("");
  FS_ASSIGN(const std::optional<std::string> bytes, catalogue_->get(key));
  return bytes.value_or("");
}

Status DiskStore::release_version(const ModelRef& resolved, Changes& changes, Dead& dead) const {
  const std::string key = manifest_key(resolved.name, resolved.version);
  FS_ASSIGN(const std::string bytes, current(key, changes));
  FS_ASSIGN(const Manifest manifest, Manifest::decode(bytes, key));
  std::set<Hash128> pieces;
  for (const ManifestEntry& entry : manifest.entries)
    pieces.insert(entry.pieces.begin(), entry.pieces.end());
  for (const Hash128& hash : pieces) FS_TRY(release_piece(hash, changes, dead));
  changes[key] = std::nullopt;
  changes[version_key(resolved.name, resolved.version)] = std::nullopt;
  return {};
}

/// Unlinks dead extents and punches holes where living ones have dead pieces; returns bytes freed.
uint64_t DiskStore::free_space_of(const Dead& dead) const {
  constexpr uint64_t kPage = 4096;
  uint64_t freed = 0;
  std::error_code error;
  for (const Hash128& extent : dead.extents) {
    struct stat st {};
    const Path path = extent_path(root_, extent);
    if (::stat(path.c_str(), &st) == 0) freed += static_cast<uint64_t>(st.st_blocks) * 512;
    std::filesystem::remove(path, error);
  }
  for (const PieceRecord& piece : dead.pieces) {
    const uint64_t begin = (piece.offset + kPage - 1) / kPage * kPage;
    const uint64_t end = (piece.offset + piece.bytes) / kPage * kPage;
    if (begin >= end) continue;
    const int fd = ::open(extent_path(root_, piece.extent).c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) continue;
    if (::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(begin),
                    static_cast<off_t>(end - begin)) == 0)
      freed += end - begin;
    ::close(fd);
  }
  return freed;
}

Result<uint64_t> DiskStore::remove(const ModelRef& ref) {
  const std::lock_guard content(content_);
  Dead dead;
  {
    const std::lock_guard names(names_);
    FS_ASSIGN(NameRecord record, need_name(ref.name));
    FS_ASSIGN(std::vector<uint64_t> kept, versions(ref.name));
    std::vector<uint64_t> removed = kept;
    if (ref.version != 0 || !ref.tag.empty()) {
      FS_ASSIGN(const ModelRef resolved, resolve(ref));
      removed = {resolved.version};
    }
    Changes changes;
    for (const uint64_t version : removed) {
      const ModelRef one{ref.name, version, ""};
      if (leased(manifest_key(ref.name, version)))
        return Error{ErrorCode::kUnavailable, "is in use", one.text(),
                     "stop what serves or reads it, then remove it"};
      FS_TRY(release_version(one, changes, dead));
      std::erase(kept, version);
    }
    FS_ASSIGN(const auto tagged, tags(ref.name));
    for (const auto& [tag, version] : tagged)
      if (std::find(kept.begin(), kept.end(), version) == kept.end())
        changes[tag_key(ref.name, tag)] = std::nullopt;
    if (std::find(kept.begin(), kept.end(), record.current) == kept.end())
      record.current = kept.empty() ? 0 : kept.back();
    changes[name_key(ref.name)] = record.encode();
    FS_TRY(catalogue_->commit(changes));
    for (const uint64_t version : removed) leases_.erase(manifest_key(ref.name, version));
  }
  // A piece that died before its extent did lies in a file that is gone by now.
  std::erase_if(dead.pieces, [&](const PieceRecord& piece) {
    return std::find(dead.extents.begin(), dead.extents.end(), piece.extent) != dead.extents.end();
  });
  return free_space_of(dead);
}

}  // namespace fastserve
