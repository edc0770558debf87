// The Store on a local disk.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "store/catalogue.h"
#include "store/extent_reader.h"
#include "store/records.h"
#include "store/store.h"
#include "store/transfer.h"

namespace fastserve {

/// Locks, outermost first: content_ (what extents hold: publish, receive and remove), names_
/// (versions, tags, leases). Readers of the catalogue take names_ only.
class DiskStore final : public Store {
 public:
  /// Without a lock only the catalogue may be read.
  DiskStore(Path root, std::optional<FileLock> lock, std::unique_ptr<Catalogue> catalogue,
            const Clock* clock)
      : root_(std::move(root)),
        lock_(std::move(lock)),
        catalogue_(std::move(catalogue)),
        clock_(clock != nullptr ? clock : &system_clock_) {}

  /// Deletes what a crash left: tmp/* and extents that no record knows.
  Status clean();

  Result<ModelRef> publish(const std::string& name, const ModelBundle& bundle,
                           const Lineage& lineage, const PublishOptions& options) override;
  Result<StoredModel> open_model(const ModelRef& ref) override;
  Result<ModelInfo> show(const ModelRef& ref) const override;
  Result<std::vector<ModelInfo>> list() const override;
  Status point(const ModelRef& ref) override;
  Status rename(const std::string& from, const std::string& to) override;
  Status tag(const ModelRef& ref, const std::string& tag) override;
  Status untag(const std::string& name, const std::string& tag) override;
  Result<uint64_t> remove(const ModelRef& ref) override;
  Status verify(const ModelRef& ref, const std::function<void(double)>& progress,
                const CancelFlag* cancel) override;
  Result<std::unique_ptr<OutgoingModel>> send(const ModelRef& ref) override;
  Result<std::unique_ptr<IncomingModel>> receive(ModelListing listing,
                                                 const ReceiveAs& as) override;
  const Path& root() const override { return root_; }

 private:
  class Outgoing;
  class Incoming;
  /// kUnavailable for a store that was opened for a glance.
  Status require_lock() const;

  // Under names_.
  Result<std::optional<NameRecord>> find_name(const std::string& name) const;
  Result<NameRecord> need_name(const std::string& name) const;
  Result<std::vector<std::string>> names() const;
  Result<std::vector<uint64_t>> versions(const std::string& name) const;
  Result<std::map<std::string, uint64_t>> tags(const std::string& name) const;
  /// With the version filled in and the tag gone; kNotFound when there is no such version.
  Result<ModelRef> resolve(const ModelRef& ref) const;
  Result<ModelInfo> info(const ModelRef& resolved) const;
  Status rename_parents(const std::string& from, const std::string& to, Changes& changes) const;
  bool leased(const std::string& key) const;
  /// The lease of a resolved version and everything needed to read it.
  struct Opened {
    ModelRef ref;
    Lineage lineage;
    std::vector<ReadEntry> entries;
    std::shared_ptr<Lease> lease;
  };
  Result<Opened> open_entries(const ModelRef& ref) const;

  Result<PieceRecord> need_piece(const Hash128& hash) const;
  Result<ReadEntry> read_entry_of(ManifestEntry entry, const std::string& where) const;
  /// Bytes of the version's pieces that no other version uses.
  Result<uint64_t> unique_bytes(const Manifest& manifest) const;

  /// Takes a version's pieces out of the catalogue; what became free is added to `dead`.
  struct Dead {
    std::vector<Hash128> extents;
    std::vector<PieceRecord> pieces;  ///< inside extents that live on
  };
  Status release_version(const ModelRef& resolved, Changes& changes, Dead& dead) const;
  /// The same for one piece of it.
  Status release_piece(const Hash128& hash, Changes& changes, Dead& dead) const;
  /// A record as the changes leave it; empty: there is none.
  Result<std::string> current(const std::string& key, const Changes& changes) const;
  uint64_t free_space_of(const Dead& dead) const;

  /// Pieces that came for a version that never did (see IncomingModel): gives up those that have
  /// waited for `age` seconds, but for `wanted`.
  Status drop_arrived(int64_t age, const std::set<Hash128>& wanted);

  const Path root_;
  const std::optional<FileLock> lock_;
  const std::unique_ptr<Catalogue> catalogue_;
  const SystemClock system_clock_;
  const Clock* const clock_;
  std::mutex content_;
  mutable std::mutex names_;
  std::atomic<uint64_t> receiving_{0};  // names the files of each that is under way
  mutable std::map<std::string, std::weak_ptr<Lease>> leases_;  // by manifest key; under names_
};

}  // namespace fastserve
