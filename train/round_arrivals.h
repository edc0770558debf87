// Which displacements of a round have come to which shards.
#pragma once

#include <map>
#include <optional>
#include <set>

#include "base/ids.h"

namespace fastserve {

/// Names each handout of a unit, and counts where what came of it is: a displacement may count once
/// every shard has it.
///
/// Threads: not thread-safe.
class RoundArrivals {
 public:
  void begin(size_t shards) {
    shards_ = shards;
    attempts_.clear();
  }
  /// The name under which `trainer` sends what it makes of `unit`; never the same twice.
  uint32_t given(uint32_t unit, TrainerId trainer) {
    attempts_[++last_] = {unit, trainer, {}};
    return last_;
  }
  /// Of another round: nothing.
  void arrived(ShardId shard, uint32_t attempt) {
    const auto at = attempts_.find(attempt);
    if (at != attempts_.end()) at->second.at.insert(shard);
  }
  /// The trainer's displacement that every shard has, if any.
  std::optional<uint32_t> everywhere(uint32_t unit, TrainerId trainer) const {
    for (const auto& [name, attempt] : attempts_)
      if (attempt.unit == unit && attempt.trainer == trainer && attempt.at.size() == shards_)
        return name;
    return std::nullopt;
  }

 private:
  struct Attempt {
    uint32_t unit;
    TrainerId trainer;
    std::set<ShardId> at;
  };
  size_t shards_ = 0;
  uint32_t last_ = 0;
  std::map<uint32_t, Attempt> attempts_;
};

}  // namespace fastserve
