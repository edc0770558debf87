// One store for everything in this process that needs it at the same time.
#pragma once

#include <memory>
#include <mutex>

#include "base/clock.h"
#include "store/store.h"

namespace fastserve {

/// Opens the store while anyone in this process uses it, and closes it when the last one is done:
/// other processes have it in between.
///
/// Threads: any. What open() gives out may outlive this.
class SharedStore {
 public:
  SharedStore(Path root, const Clock& clock) : root_(std::move(root)), clock_(clock) {}

  /// Waits up to `patience` for another process. kUnavailable names it.
  Result<std::unique_ptr<Store>> open(Nanoseconds patience);
  /// For show and list alone, beside another process's work.
  Result<std::unique_ptr<Store>> glance();

 private:
  const Path root_;
  const Clock& clock_;
  std::mutex mutex_;
  std::weak_ptr<Store> store_;
};

}  // namespace fastserve
