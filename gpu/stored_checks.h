// What kernels find wrong with numbers as they are stored.
#pragma once

#include <optional>

#include "gpu/runtime.h"
#include "model/decode_ops.h"

namespace fastserve::gpu {

/// Two counters on the card for each part of a matrix: codes out of range, scales not finite.
///
/// Owns:    a little of the card's memory, from the first part until finish().
/// Threads: one caller.
class StoredChecks {
 public:
  explicit StoredChecks(Runtime& runtime) : runtime_(runtime) {}

  /// Counters of `parts` more parts; parts are numbered in the order in which they are added.
  Result<uint32_t*> add(size_t parts);
  /// Waits for the card. The first part with a fault; the next to be added is part 0 again.
  std::optional<StoredFault> finish();

 private:
  static constexpr size_t kMost = 1024;  ///< parts that are looked at together
  void look();

  Runtime& runtime_;
  Memory counters_;
  size_t looked_at_ = 0, added_ = 0;
  std::optional<StoredFault> fault_;
};

}  // namespace fastserve::gpu
