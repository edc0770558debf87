// Versions on their way to and from other stores.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "store/disk_store.h"
#include "store/extent_writer.h"
#include "store/names.h"
#include "store/pieces.h"

namespace fastserve {

class DiskStore::Outgoing final : public OutgoingModel {
 public:
  Outgoing(const DiskStore& store, ModelListing listing, Opened opened)
      : store_(store),
        listing_(std::move(listing)),
        pieces_(listing_.pieces()),
        opened_(std::move(opened)) {}

  const ModelListing& listing() const override { return listing_; }
  Result<std::string> piece(size_t index) override {
    if (index >= pieces_.size())
      return Error{ErrorCode::kInvalidArgument, fmt::format("has no piece {}", index),
                   listing_.ref.text(), ""};
    ReadEntry entry;
    FS_ASSIGN(PieceRecord record, store_.need_piece(pieces_[index].hash));
    entry.entry.name = fmt::format("piece {}", index);
    entry.entry.bytes = record.bytes;
    entry.pieces.push_back(std::move(record));
    std::string bytes;
    bytes.reserve(entry.entry.bytes);
    FS_TRY(read_entry(store_.root_, listing_.ref.text(), entry, &bytes));
    return bytes;
  }

 private:
  const DiskStore& store_;
  const ModelListing listing_;
  const std::vector<ModelListing::Piece> pieces_;
  const Opened opened_;  // its lease
};

Result<std::unique_ptr<OutgoingModel>> DiskStore::send(const ModelRef& ref) {
  FS_ASSIGN(Opened opened, open_entries(ref));
  ModelListing listing;
  listing.ref = opened.ref;
  const std::string about_key = version_key(opened.ref.name, opened.ref.version);
  FS_ASSIGN(const auto about, catalogue_->get(about_key));
  FS_ASSIGN(listing.about, VersionRecord::decode(about.value_or(""), about_key));
  for (const ReadEntry& read : opened.entries) listing.manifest.entries.push_back(read.entry);
  return std::unique_ptr<OutgoingModel>(
      std::make_unique<Outgoing>(*this, std::move(listing), std::move(opened)));
}

/// What came is kept in groups: the extents of a group are in place before its records are.
class DiskStore::Incoming final : public IncomingModel {
 public:
  Incoming(DiskStore& store, ModelListing listing, const ReceiveAs& as)
      : store_(store),
        listing_(std::move(listing)),
        as_(as),
        pieces_(listing_.pieces()),
        wanted_(pieces_.size(), false),
        label_(fmt::format("arriving-{}", ++store.receiving_)) {}
  ~Incoming() override {
    if (!committed_) [[maybe_unused]]
      const Status kept = keep();
  }

  Status look_for_pieces();
  uint64_t missing_bytes() const;
  std::set<Hash128> hashes() const;

  const std::vector<bool>& wanted() const override { return wanted_; }
  Status put(size_t index, std::span<const std::byte> bytes) override;
  Result<ModelRef> commit() override;

 private:
  struct Arrived {
    size_t index;
    ExtentWriter::Place place;
    std::vector<uint64_t> checksums;
  };
  Status keep();
  Status record_group(const ExtentWriter& writer, Changes& changes);
  Status use_pieces(Changes& changes) const;
  Result<std::optional<ModelRef>> same_as_before() const;

  DiskStore& store_;
  const ModelListing listing_;
  const ReceiveAs as_;
  const std::vector<ModelListing::Piece> pieces_;
  std::vector<bool> wanted_;            // and not yet put
  std::map<Hash128, Hash128> damaged_;  // piece to the extent that holds it no longer
  const std::string label_;
  std::unique_ptr<ExtentWriter> writer_;
  std::vector<Arrived> group_;
  uint64_t group_bytes_ = 0;
  bool committed_ = false;
};

Status DiskStore::Incoming::look_for_pieces() {
  for (size_t i = 0; i < pieces_.size(); i++) {
    const std::string key = piece_key(pieces_[i].hash);
    FS_ASSIGN(const auto known, store_.catalogue_->get(key));
    wanted_[i] = true;
    if (!known) continue;
    FS_ASSIGN(const PieceRecord record, PieceRecord::decode(*known, key));
    wanted_[i] = !piece_is_sound(store_.root_, record);
    if (wanted_[i]) damaged_[pieces_[i].hash] = record.extent;
  }
  return {};
}

uint64_t DiskStore::Incoming::missing_bytes() const {
  uint64_t bytes = 0;
  for (size_t i = 0; i < pieces_.size(); i++)
    if (wanted_[i]) bytes += pieces_[i].bytes;
  return bytes;
}

std::set<Hash128> DiskStore::Incoming::hashes() const {
  std::set<Hash128> all;
  for (const auto& piece : pieces_) all.insert(piece.hash);
  return all;
}

Status DiskStore::Incoming::put(size_t index, std::span<const std::byte> bytes) {
  if (index >= pieces_.size() || !wanted_[index]) return {};
  const ModelListing::Piece& piece = pieces_[index];
  if (bytes.size() != piece.bytes || hash128(bytes) != piece.hash)
    return Error{ErrorCode::kCorrupt, fmt::format("piece {} is not what its checksum says", index),
                 listing_.ref.text(), "try again; verify the model where it comes from"};
  if (writer_ == nullptr)
    writer_ = std::make_unique<ExtentWriter>(store_.root_, missing_bytes(), label_);
  FS_ASSIGN(const ExtentWriter::Place place,
            piece.alone ? writer_->append_alone(bytes) : writer_->append(bytes));
  group_.push_back({index, place, block_checksums(bytes)});
  group_bytes_ += bytes.size();
  wanted_[index] = false;
  return group_bytes_ < kPieceBytes ? Status() : keep();
}

/// Adds the group's pieces and extents. A piece that has come another way meanwhile stays there.
Status DiskStore::Incoming::record_group(const ExtentWriter& writer, Changes& changes) {
  std::map<Hash128, ExtentRecord> extents;
  for (const auto& extent : writer.extents()) extents[extent.hash] = {extent.bytes, 0};
  std::map<Hash128, uint32_t> left;  // pieces that were damaged where they were
  const std::string now = std::to_string(store_.clock_->unix_seconds());
  for (const Arrived& arrived : group_) {
    const ModelListing::Piece& piece = pieces_[arrived.index];
    const std::string key = piece_key(piece.hash);
    FS_ASSIGN(const auto known, store_.catalogue_->get(key));
    PieceRecord record;
    if (known) {
      FS_ASSIGN(record, PieceRecord::decode(*known, key));
      const auto damaged = damaged_.find(piece.hash);
      if (damaged == damaged_.end() || damaged->second != record.extent) continue;
      left[record.extent]++;
    }
    record.extent = writer.extents()[arrived.place.extent].hash;
    record.offset = arrived.place.offset;
    record.bytes = piece.bytes;
    record.checksums = arrived.checksums;
    extents[record.extent].pieces++;
    changes[key] = record.encode();
    if (record.versions == 0) changes[arrived_key(piece.hash)] = now;
  }
  for (const auto& [hash, pieces] : left) {
    if (extents.contains(hash)) continue;  // written again whole, under the name it had
    FS_ASSIGN(const auto bytes, store_.catalogue_->get(extent_key(hash)));
    FS_ASSIGN(ExtentRecord extent, ExtentRecord::decode(bytes.value_or(""), extent_key(hash)));
    extent.pieces -= std::min(extent.pieces, pieces);
    changes[extent_key(hash)] = extent.pieces > 0 ? std::optional(extent.encode()) : std::nullopt;
  }
  for (const auto& [hash, extent] : extents)
    if (extent.pieces > 0) changes[extent_key(hash)] = extent.encode();
  return {};
}

Status DiskStore::Incoming::keep() {
  if (writer_ == nullptr) return {};
  const std::lock_guard content(store_.content_);
  const auto writer = std::move(writer_);
  FS_TRY(writer->finish());
  Changes changes;
  if (const Status recorded = record_group(*writer, changes); !recorded.ok()) {
    writer->undo();
    return recorded;
  }
  group_.clear();
  group_bytes_ = 0;
  return store_.catalogue_->commit(changes);  // failing, it leaves the rest to the next open
}

/// The version's pieces belong to it from now on.
Status DiskStore::Incoming::use_pieces(Changes& changes) const {
  for (const ModelListing::Piece& piece : pieces_) {
    const std::string key = piece_key(piece.hash);
    FS_ASSIGN(const auto known, store_.catalogue_->get(key));
    if (!known)
      return Error{ErrorCode::kUnavailable, "lost a part of it that another model had here",
                   listing_.ref.text(), "a model was removed meanwhile: try again"};
    FS_ASSIGN(PieceRecord record, PieceRecord::decode(*known, key));
    record.versions++;
    changes[key] = record.encode();
    changes[arrived_key(piece.hash)] = std::nullopt;
  }
  return {};
}

/// With store_.names_ held.
Result<std::optional<ModelRef>> DiskStore::Incoming::same_as_before() const {
  if (as_.version == 0) return std::optional<ModelRef>();
  FS_ASSIGN(const auto before, store_.catalogue_->get(manifest_key(as_.name, as_.version)));
  if (before != listing_.manifest.encode()) return std::optional<ModelRef>();
  return std::optional(ModelRef{as_.name, as_.version, ""});
}

Result<ModelRef> DiskStore::Incoming::commit() {
  FS_TRY(keep());
  if (std::find(wanted_.begin(), wanted_.end(), true) != wanted_.end())
    return Error{ErrorCode::kInvalidArgument, "is not whole yet", listing_.ref.text(), ""};
  const std::lock_guard content(store_.content_);
  Dead dead;
  ModelRef made{as_.name, as_.version, ""};
  {
    const std::lock_guard names(store_.names_);
    FS_ASSIGN(const auto same, same_as_before());
    FS_ASSIGN(const auto found, store_.find_name(as_.name));
    NameRecord record = found.value_or(NameRecord{});
    if (made.version == 0) made.version = record.highest + 1;
    Changes changes;
    if (!same) {
      FS_TRY(use_pieces(changes));
      const std::string key = manifest_key(made.name, made.version);
      FS_ASSIGN(const auto before, store_.catalogue_->get(key));
      if (before && store_.leased(key))
        return Error{ErrorCode::kUnavailable, "is in use, and another model now", made.text(),
                     "stop what serves it, then try again"};
      if (before) FS_TRY(store_.release_version(made, changes, dead));
      VersionRecord about = listing_.about;
      if (about.created_unix == 0) about.created_unix = store_.clock_->unix_seconds();
      changes[version_key(made.name, made.version)] = about.encode();
      changes[key] = listing_.manifest.encode();
    }
    record.highest = std::max(record.highest, made.version);
    record.current = made.version;
    changes[name_key(made.name)] = record.encode();
    FS_TRY(store_.catalogue_->commit(changes));
  }
  committed_ = true;
  store_.free_space_of(dead);
  return made;
}

Result<std::unique_ptr<IncomingModel>> DiskStore::receive(ModelListing listing,
                                                          const ReceiveAs& as) {
  FS_TRY(require_lock());
  FS_TRY(check_name(as.name));
  auto incoming = std::make_unique<Incoming>(*this, std::move(listing), as);
  FS_TRY(incoming->look_for_pieces());
  if (!require_free_space(root_, incoming->missing_bytes()).ok())
    FS_TRY(drop_arrived(0, incoming->hashes()));
  FS_TRY(require_free_space(root_, incoming->missing_bytes()));
  return std::unique_ptr<IncomingModel>(std::move(incoming));
}

Status DiskStore::drop_arrived(int64_t age, const std::set<Hash128>& wanted) {
  const std::lock_guard content(content_);
  FS_ASSIGN(const auto records, catalogue_->scan("arrived/"));
  const int64_t now = clock_->unix_seconds();
  Changes changes;
  Dead dead;
  for (const auto& [key, text] : records) {
    int64_t since = 0;
    std::from_chars(text.data(), text.data() + text.size(), since);
    FS_ASSIGN(const Hash128 hash, parse_hash(key.substr(key.find('/') + 1), key));
    const bool old = now - since >= age || since > now;
    FS_ASSIGN(const auto bytes, catalogue_->get(piece_key(hash)));
    if (bytes && (!old || wanted.contains(hash))) continue;
    changes[key] = std::nullopt;
    if (!bytes) continue;
    FS_ASSIGN(const PieceRecord piece, PieceRecord::decode(*bytes, piece_key(hash)));
    if (piece.versions == 0) FS_TRY(release_piece(hash, changes, dead));
  }
  if (changes.empty()) return {};
  FS_TRY(catalogue_->commit(changes));
  free_space_of(dead);
  return {};
}

}  // namespace fastserve
