// How far the nodes of a job may drift apart, by the names a user chooses.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace fastserve {

/// What a node may do without the others. All but kExact and a job on one node promise no bits:
/// they depend on who was there, and on who was fast.
struct Consistency {
  enum class Kind {
    kExact,  ///< every step is one of all nodes, and its bits are those of one process
    kStale,  ///< a node may be `bound` steps ahead of the slowest; shards apply what has come
    kAsync,  ///< kStale without a bound
    kLocal,  ///< each node trains by itself for `bound` steps; then they meet in the mean (DiLoCo)
  };
  Kind kind = Kind::kExact;
  int bound = 0;  ///< kStale: S; kLocal: H

  static constexpr int kMostStale = 1000;
  static constexpr int kMostLocal = 10'000;

  bool exact() const { return kind == Kind::kExact; }
  bool local() const { return kind == Kind::kLocal; }
  /// Steps are finished one by one by each node, and applied as they come.
  bool loose() const { return kind == Kind::kStale || kind == Kind::kAsync; }
  bool operator==(const Consistency&) const = default;

  /// "exact", "stale:S", "async" or "local:H"; kInvalidArgument names what there is.
  static Result<Consistency> parse(std::string_view text);
  /// What parse() reads.
  std::string text() const;
};

}  // namespace fastserve
