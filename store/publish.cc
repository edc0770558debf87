// Publishing: new content to extents, then one group of records.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "store/description.h"
#include "store/disk_store.h"
#include "store/extent_writer.h"
#include "store/names.h"
#include "store/pieces.h"

namespace fastserve {
namespace {

/// A document or tensor to be stored.
struct Item {
  ManifestEntry entry;
  std::span<const std::byte> bytes;
};

std::span<const std::byte> piece_of(const Item& item, size_t index) {
  const uint64_t begin = index * kPieceBytes;
  return item.bytes.subspan(begin, std::min(kPieceBytes, item.bytes.size() - begin));
}

/// One publish, from content to changes. Requires that nobody removes content meanwhile.
class Publication {
 public:
  Publication(const Path& root, const Catalogue& catalogue, const Store::PublishOptions& options,
              uint64_t total)
      : root_(root),
        catalogue_(catalogue),
        options_(options),
        total_(total),
        writer_(root, total) {}

  /// Stores every piece that the store lacks.
  Status store(std::vector<Item>& items) {
    for (Item& item : items) {
      const size_t pieces = (item.bytes.size() + kPieceBytes - 1) / kPieceBytes;
      for (size_t i = 0; i < pieces; i++) {
        if (options_.cancel != nullptr && options_.cancel->raised())
          return Error{ErrorCode::kCancelled, "the publish was cancelled; nothing was stored", "",
                       ""};
        const auto piece = piece_of(item, i);
        FS_ASSIGN(const Hash128 hash, store_piece(piece, pieces > 1));
        item.entry.pieces.push_back(hash);
        done_ += piece.size();
        if (options_.progress)
          options_.progress(0.99 * static_cast<double>(done_) / static_cast<double>(total_));
      }
    }
    return writer_.finish();
  }

  /// Adds the piece and extent records to `changes`.
  Status record(Changes& changes) {
    std::map<Hash128, uint32_t> new_in_extent;
    for (auto& [hash, use] : used_) {
      if (use.is_new) {
        use.record.extent = writer_.extents()[use.place].hash;
        new_in_extent[use.record.extent]++;
      }
      use.record.versions++;
      changes[piece_key(hash)] = use.record.encode();
    }
    for (const auto& extent : writer_.extents())
      changes[extent_key(extent.hash)] =
          ExtentRecord{extent.bytes, new_in_extent[extent.hash]}.encode();
    return record_departures(changes);
  }

  void undo() { writer_.undo(); }

 private:
  /// Extents that pieces have left; one with none is deleted when the store is next opened.
  Status record_departures(Changes& changes) const {
    for (const auto& [hash, pieces] : departures_) {
      const std::string key = extent_key(hash);
      if (changes.contains(key)) continue;  // written again whole, under the name it had
      FS_ASSIGN(const std::optional<std::string> bytes, catalogue_.get(key));
      FS_ASSIGN(ExtentRecord extent, ExtentRecord::decode(bytes.value_or(""), key));
      extent.pieces -= std::min(extent.pieces, pieces);
      changes[key] = extent.pieces > 0 ? std::optional(extent.encode()) : std::nullopt;
    }
    return {};
  }

  struct Use {
    PieceRecord record;
    bool is_new = false;
    size_t place = 0;  // the writer's extent, when new
  };

  Result<Hash128> store_piece(std::span<const std::byte> piece, bool alone) {
    const Hash128 hash = hash128(piece);
    if (used_.contains(hash)) return hash;
    FS_ASSIGN(const std::optional<std::string> known, catalogue_.get(piece_key(hash)));
    Use use;
    if (known) {
      FS_ASSIGN(use.record, PieceRecord::decode(*known, piece_key(hash)));
    }
    if (!known || !piece_is_sound(root_, use.record)) {
      if (known) departures_[use.record.extent]++;
      FS_ASSIGN(const ExtentWriter::Place place,
                alone ? writer_.append_alone(piece) : writer_.append(piece));
      use.is_new = true;
      use.place = place.extent;
      use.record.offset = place.offset;
      use.record.bytes = piece.size();
      use.record.checksums = block_checksums(piece);
    }
    used_.emplace(hash, std::move(use));
    return hash;
  }

  const Path& root_;
  const Catalogue& catalogue_;
  const Store::PublishOptions& options_;
  const uint64_t total_;
  uint64_t done_ = 0;
  ExtentWriter writer_;
  std::map<Hash128, Use> used_;
  std::map<Hash128, uint32_t> departures_;  // pieces that were damaged in an extent
};

/// Bytes that the store does not hold yet; stops counting above `enough`.
Result<uint64_t> new_bytes(const std::vector<Item>& items, const Catalogue& catalogue,
                           uint64_t enough) {
  uint64_t bytes = 0;
  std::set<Hash128> seen;
  for (const Item& item : items)
    for (size_t i = 0; i * kPieceBytes < item.bytes.size() && bytes <= enough; i++) {
      const auto piece = piece_of(item, i);
      const Hash128 hash = hash128(piece);
      FS_ASSIGN(const std::optional<std::string> known, catalogue.get(piece_key(hash)));
      if (!known && seen.insert(hash).second) bytes += piece.size();
    }
  return bytes;
}

/// Counts what is shared only when the whole would not fit: it costs a reading of everything.
Status check_space(const Path& root, const std::vector<Item>& items, const Catalogue& catalogue,
                   uint64_t total) {
  if (require_free_space(root, total).ok()) return {};
  FS_ASSIGN(const uint64_t free, free_space(root));
  FS_ASSIGN(const uint64_t needed, new_bytes(items, catalogue, free));
  return require_free_space(root, needed);
}

}  // namespace

Result<ModelRef> DiskStore::publish(const std::string& name, const ModelBundle& bundle,
                                    const Lineage& lineage, const PublishOptions& options) {
  FS_TRY(require_lock());
  FS_TRY(check_name(name));
  std::vector<Item> items;
  VersionRecord version;
  version.lineage = lineage;
  for (const auto& [document, text] : bundle.documents)
    items.push_back(
        {{document, true, DType::kU8, {}, text.size(), {}}, std::as_bytes(std::span(text))});
  std::vector<std::pair<std::string, TensorView>> views;
  if (bundle.tensors) {
    std::vector<std::string> tensor_names = bundle.tensors->names();
    sort_in_execution_order(tensor_names);
    for (std::string& tensor : tensor_names) {
      FS_ASSIGN(TensorView view, bundle.tensors->tensor(tensor));
      items.push_back({{tensor, false, view.dtype, view.shape, view.bytes.size(), {}}, view.bytes});
      views.emplace_back(std::move(tensor), std::move(view));
    }
  }
  for (const Item& item : items) version.bytes += item.bytes.size();
  const BundleDescription description = describe_bundle(bundle, views);
  version.architecture = description.architecture;
  version.weight_format = description.weight_format;
  version.parameters = description.parameters;

  const std::lock_guard content(content_);
  FS_TRY(check_space(root_, items, *catalogue_, version.bytes));
  Publication publication(root_, *catalogue_, options, version.bytes);
  FS_TRY(publication.store(items));

  Manifest manifest;
  for (Item& item : items) manifest.entries.push_back(std::move(item.entry));
  Changes changes;
  const Status recorded = publication.record(changes);
  if (!recorded.ok()) {
    publication.undo();
    return recorded.error();
  }
  const std::lock_guard names(names_);
  Result<std::optional<NameRecord>> found = find_name(name);
  if (!found.ok()) {
    publication.undo();
    return found.error();
  }
  NameRecord record = found->value_or(NameRecord{});
  record.highest++;
  if (options.move_name || record.current == 0) record.current = record.highest;
  version.created_unix = clock_->unix_seconds();
  changes[name_key(name)] = record.encode();
  changes[version_key(name, record.highest)] = version.encode();
  changes[manifest_key(name, record.highest)] = manifest.encode();
  // When this fails the extents stay: the log may hold the group after all, which the next open
  // finds out. They are deleted then if not.
  FS_TRY(catalogue_->commit(changes));
  if (options.progress) options.progress(1);
  return ModelRef{name, record.highest, ""};
}

}  // namespace fastserve
