#include "store/state_store.h"

#include <filesystem>

#include "store/reserve.h"

namespace fastserve {
namespace {

/// Another process at work, in words that fit a state rather than a store of models.
Result<FileLock> lock_state(const Path& folder) {
  auto lock = FileLock::acquire(folder / "lock");
  if (lock.ok() || lock.error().code != ErrorCode::kUnavailable) return lock;
  Error error = std::move(lock).error();
  error.hint = "only one process at a time may work on this state: stop that one";
  return error;
}

/// A catalogue begins anew where it finds nothing; a state that was here must not.
Status check_not_lost(const Path& folder) {
  std::error_code error;
  if (std::filesystem::exists(folder / "catalogue" / "CURRENT", error)) return {};
  if (!std::filesystem::exists(folder / "acknowledged", error)) return {};
  return Error{ErrorCode::kCorrupt, "the state is gone: it has no file CURRENT, and it had records",
               (folder / "catalogue").string(), "restore this folder from a backup"};
}

class DiskState final : public StateStore {
 public:
  DiskState(std::optional<FileLock> lock, std::unique_ptr<Catalogue> records)
      : lock_(std::move(lock)), records_(std::move(records)) {}

  Result<std::optional<std::string>> get(const std::string& key) const override {
    return records_->get(key);
  }
  Result<std::vector<std::pair<std::string, std::string>>> list(
      const std::string& prefix) const override {
    return records_->scan(prefix);
  }
  Status write(const Changes& changes) override { return records_->commit(changes); }

 private:
  std::optional<FileLock> lock_;  // outlives what it guards; none: only to look
  std::unique_ptr<Catalogue> records_;
};

}  // namespace

Result<std::unique_ptr<StateStore>> open_state_store(const Path& folder) {
  std::error_code error;
  const Path absolute = std::filesystem::absolute(folder, error).lexically_normal();
  FS_TRY(make_directories(absolute));
  FS_TRY(spend_reserve(absolute));
  FS_ASSIGN(FileLock lock, lock_state(absolute));
  FS_TRY(check_not_lost(absolute));
  FS_ASSIGN(auto records, Catalogue::open(absolute));
  keep_reserve(absolute);
  return std::unique_ptr<StateStore>(new DiskState(std::move(lock), std::move(records)));
}

Result<std::unique_ptr<StateStore>> glance_at_state_store(const Path& folder) {
  std::error_code error;
  const Path absolute = std::filesystem::absolute(folder, error).lexically_normal();
  FS_ASSIGN(auto records, Catalogue::open_for_reading(absolute));
  return std::unique_ptr<StateStore>(new DiskState(std::nullopt, std::move(records)));
}

}  // namespace fastserve
