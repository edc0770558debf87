// Small records that a long-lived process must find again whatever happens to it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "store/catalogue.h"

namespace fastserve {

/// Records of one owner: what a coordinator remembers.
///
/// Threads:  any; groups of changes are applied one after another.
/// Promises: a group that write() answered ok for survives a power cut, and is whole or absent
///           otherwise. A record that was written is what get() and list() answer from then on.
/// Errors:   kResourceExhausted when the disk is full (nothing was changed, and a later write may
///           succeed), kIo.
class StateStore {
 public:
  virtual ~StateStore() = default;
  virtual Result<std::optional<std::string>> get(const std::string& key) const = 0;
  /// Records whose key begins with `prefix`, by key, from one moment.
  virtual Result<std::vector<std::pair<std::string, std::string>>> list(
      const std::string& prefix) const = 0;
  /// Atomic and synced. A key with no value is deleted.
  virtual Status write(const Changes& changes) = 0;
};

/// The store in `folder`, made when there is none.
///
/// Owns:    the folder, under a lock: kUnavailable names the process that has it.
/// Refuses: a disk too full to open it safely (kResourceExhausted), records that are damaged or
///          fewer than were promised (kCorrupt), and to begin anew where records were and are gone.
Result<std::unique_ptr<StateStore>> open_state_store(const Path& folder);
/// As it is now, beside a process that has it or not. write() is refused (kUnavailable).
Result<std::unique_ptr<StateStore>> glance_at_state_store(const Path& folder);

}  // namespace fastserve
