// The store's RocksDB: small records, changed in whole groups.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/result.h"

namespace fastserve {

/// A group of changes that reach the catalogue together: a value to put, or nothing to delete.
using Changes = std::map<std::string, std::optional<std::string>>;

/// Key-value records with atomic, durable groups of changes.
///
/// Owns:     root/catalogue (RocksDB) and root/acknowledged (the number of the last durable group).
/// Threads:  every call from any thread; groups are applied one after another.
/// Promises: commit() returns ok only when the group survives a power cut. After a crash in the
///           middle of commit() the group is whole or absent.
/// Refuses:  to open when a group that was acknowledged is missing (kCorrupt): the log's tail may
///           be torn by a crash, but not shorter than what was promised. Nor does it begin anew
///           where models were stored and the database is gone.
class Catalogue {
 public:
  static Result<std::unique_ptr<Catalogue>> open(const Path& root);
  /// As it is now, beside a process that has it open. commit() is refused (kUnavailable).
  static Result<std::unique_ptr<Catalogue>> open_for_reading(const Path& root);
  virtual ~Catalogue() = default;

  virtual Result<std::optional<std::string>> get(const std::string& key) const = 0;
  /// Records whose key begins with `prefix`, by key, from one moment.
  virtual Result<std::vector<std::pair<std::string, std::string>>> scan(
      const std::string& prefix) const = 0;
  virtual Status commit(const Changes& changes) = 0;
};

}  // namespace fastserve
