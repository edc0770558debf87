#include "store/catalogue.h"

#include <fmt/format.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <charconv>
#include <cstdarg>
#include <mutex>

namespace fastserve {
namespace {

constexpr const char* kGroupsKey = "groups";  // how many groups the catalogue has taken

rocksdb::Options database_options(rocksdb::WALRecoveryMode recovery) {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.compression = rocksdb::kNoCompression;
  options.write_buffer_size = 4 << 20;
  options.max_background_jobs = 2;
  options.max_open_files = 64;
  options.wal_recovery_mode = recovery;
  options.avoid_flush_during_recovery = true;  // opening writes nothing that it need not
  options.skip_stats_update_on_db_open = true;
  options.max_manifest_file_size = 1 << 20;
  options.allow_fallocate = false;  // megabytes for a few records, on a disk that may be full
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  options.info_log_level = rocksdb::WARN_LEVEL;
  options.keep_log_file_num = 2;
  options.max_log_file_size = 256 << 10;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(4 << 20);
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

Error from_rocksdb(const rocksdb::Status& status, std::string_view what, const Path& path) {
  Error error{ErrorCode::kIo, fmt::format("{}: {}", what, status.ToString()), path.string(), ""};
  if (status.IsCorruption()) {
    error.code = ErrorCode::kCorrupt;
    error.hint = "the catalogue is damaged: restore this folder from a backup";
  } else if (status.IsNoSpace()) {
    error.code = ErrorCode::kResourceExhausted;
    error.hint = "free some space or choose another disk";
  }
  return error;
}

uint64_t parse_count(std::string_view text) {
  uint64_t count = 0;
  std::from_chars(text.data(), text.data() + text.size(), count);
  return count;
}

/// RocksDB's threads belong to the process, not to a database. They are sent home with the last
/// database, so that a host program is left as it was; opening one calls them back.
class BackgroundThreads {
 public:
  BackgroundThreads() {
    const std::lock_guard lock(mutex());
    users()++;
  }
  ~BackgroundThreads() {
    const std::lock_guard lock(mutex());
    if (--users() > 0) return;
    for (const auto pool : {rocksdb::Env::LOW, rocksdb::Env::HIGH})
      rocksdb::Env::Default()->SetBackgroundThreads(0, pool);
  }
  BackgroundThreads(const BackgroundThreads&) = delete;
  BackgroundThreads& operator=(const BackgroundThreads&) = delete;

 private:
  static std::mutex& mutex() {
    static std::mutex mutex;
    return mutex;
  }
  static int& users() {
    static int users = 0;
    return users;
  }
};

/// Reads records of a database.
class RocksRecords : public Catalogue {
 public:
  RocksRecords(Path root, std::unique_ptr<BackgroundThreads> threads,
               std::unique_ptr<rocksdb::DB> database)
      : root_(std::move(root)), threads_(std::move(threads)), database_(std::move(database)) {}

  ~RocksRecords() override { database_->Close(); }

  Result<std::optional<std::string>> get(const std::string& key) const override {
    std::string value;
    const rocksdb::Status status = database_->Get({}, key, &value);
    if (status.IsNotFound()) return std::optional<std::string>();
    if (!status.ok()) return from_rocksdb(status, "cannot read record " + key, root_);
    return std::optional<std::string>(std::move(value));
  }

  Result<std::vector<std::pair<std::string, std::string>>> scan(
      const std::string& prefix) const override {
    std::vector<std::pair<std::string, std::string>> records;
    const std::unique_ptr<rocksdb::Iterator> at(database_->NewIterator({}));
    for (at->Seek(prefix); at->Valid() && at->key().starts_with(prefix); at->Next())
      records.emplace_back(at->key().ToString(), at->value().ToString());
    if (!at->status().ok()) return from_rocksdb(at->status(), "cannot read " + prefix, root_);
    return records;
  }

 protected:
  const Path root_;
  const std::unique_ptr<BackgroundThreads> threads_;  // outlives the database
  const std::unique_ptr<rocksdb::DB> database_;
};

class RocksCatalogue final : public RocksRecords {
 public:
  using RocksRecords::RocksRecords;

  /// Reads the group counter and compares it with what was acknowledged.
  Status recover() {
    FS_ASSIGN(const std::optional<std::string> groups, get(kGroupsKey));
    groups_ = groups ? parse_count(*groups) : 0;
    const Result<std::string> acknowledged = read_file(root_ / "acknowledged", 64);
    if (!acknowledged.ok() && acknowledged.error().code != ErrorCode::kNotFound)
      return acknowledged.error();
    const uint64_t promised = acknowledged.ok() ? parse_count(*acknowledged) : 0;
    if (groups_ >= promised) return {};
    return Error{ErrorCode::kCorrupt,
                 fmt::format("{} of {} acknowledged changes are missing from the catalogue's log",
                             promised - groups_, promised),
                 (root_ / "catalogue").string(),
                 "restore this folder from a backup; to accept the loss, delete the file "
                 "'acknowledged' beside it"};
  }

  Status commit(const Changes& changes) override {
    const std::lock_guard lock(commit_);
    rocksdb::WriteBatch batch;
    for (const auto& [key, value] : changes) {
      const rocksdb::Status added = value ? batch.Put(key, *value) : batch.Delete(key);
      if (!added.ok()) return from_rocksdb(added, "cannot prepare record " + key, root_);
    }
    const std::string number = std::to_string(groups_ + 1);
    const rocksdb::Status counted = batch.Put(kGroupsKey, number);
    if (!counted.ok()) return from_rocksdb(counted, "cannot prepare the group", root_);
    rocksdb::WriteOptions synced;
    synced.sync = true;
    const rocksdb::Status written = database_->Write(synced, &batch);
    if (!written.ok()) {
      // RocksDB refuses writes after a failed one until told to go on.
      database_->Resume().PermitUncheckedError();
      return from_rocksdb(written, "cannot write to the catalogue", root_);
    }
    groups_++;
    // The group is durable. A failure to note so only weakens what recover() can detect.
    (void)write_file_atomically(root_ / "acknowledged", number).ok();
    return {};
  }

 private:
  std::mutex commit_;
  uint64_t groups_ = 0;  // guarded by commit_
};

/// RocksDB would begin a new database where it finds none, and the store would then delete extents
/// that nobody knows any more. So a database may be missing only where nothing was ever stored.
Status check_not_lost(const Path& root) {
  std::error_code error;
  if (std::filesystem::exists(root / "catalogue" / "CURRENT", error)) return {};
  const bool acknowledged = std::filesystem::exists(root / "acknowledged", error);
  const std::filesystem::directory_iterator extents(root / "extents", error);
  if (!acknowledged && (error || extents == std::filesystem::directory_iterator())) return {};
  return Error{ErrorCode::kCorrupt,
               "the catalogue is gone: it has no file CURRENT, and models were stored here",
               (root / "catalogue").string(),
               "restore this folder from a backup; the weights in extents/ were not touched"};
}

/// RocksDB would begin a log file, and move the other process's aside.
class NoLog final : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
};

/// Another process's catalogue at one moment.
class Glance final : public RocksRecords {
 public:
  using RocksRecords::RocksRecords;
  Status commit(const Changes&) override {
    return Error{ErrorCode::kUnavailable, "is open for reading only", root_.string(), ""};
  }
};

}  // namespace

Result<std::unique_ptr<Catalogue>> Catalogue::open_for_reading(const Path& root) {
  const Path folder = root / "catalogue";
  auto threads = std::make_unique<BackgroundThreads>();
  // The other process may be in the middle of appending to the log.
  rocksdb::Options options = database_options(rocksdb::WALRecoveryMode::kPointInTimeRecovery);
  options.create_if_missing = false;
  options.info_log = std::make_shared<NoLog>();
  rocksdb::DB* database = nullptr;
  const rocksdb::Status status = rocksdb::DB::OpenForReadOnly(options, folder, &database);
  if (!status.ok()) return from_rocksdb(status, "cannot read the catalogue", folder);
  return std::unique_ptr<Catalogue>(
      new Glance(root, std::move(threads), std::unique_ptr<rocksdb::DB>(database)));
}

Result<std::unique_ptr<Catalogue>> Catalogue::open(const Path& root) {
  const Path folder = root / "catalogue";
  FS_TRY(check_not_lost(root));
  auto threads = std::make_unique<BackgroundThreads>();  // before the database calls them
  rocksdb::DB* database = nullptr;
  rocksdb::Status status = rocksdb::DB::Open(
      database_options(rocksdb::WALRecoveryMode::kAbsoluteConsistency), folder, &database);
  if (status.IsCorruption()) {
    // A crash may have torn the last record of the log. That is fine when the record was never
    // acknowledged, which recover() checks; any other damage fails again here.
    status =
        rocksdb::DB::Open(database_options(rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords),
                          folder, &database);
  }
  if (!status.ok()) return from_rocksdb(status, "cannot open the catalogue", folder);
  auto catalogue = std::make_unique<RocksCatalogue>(root, std::move(threads),
                                                    std::unique_ptr<rocksdb::DB>(database));
  FS_TRY(catalogue->recover());
  return std::unique_ptr<Catalogue>(std::move(catalogue));
}

}  // namespace fastserve
