// When a shard's missing copies are made again.
#pragma once

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "train/shard_copies.h"

namespace fastserve {

/// Copies are made while the job holds still between two steps (TrainingJob::hold_still()): then a
/// shard's state is what all its copies have, and no gradient is under way.
///
/// Threads:  not thread-safe.
/// Promises: every hold comes to an end, as long as each node that makes a copy either says so or
/// is
///           lost.
class CopyMaker {
 public:
  /// `copies` outlives this. `replicas`: how many each shard is to have.
  CopyMaker(ShardCopies& copies, int replicas) : copies_(copies), replicas_(replicas) {}

  /// Whether the job is to hold still, so that the nodes that are `able` may make copies: asked
  /// whenever one has come or gone. Once, until that hold has ended.
  bool wants_hold(const std::vector<std::string>& able) {
    if (holding_ != Holding::kNot || copies_.seeds(able, replicas_).empty()) return false;
    holding_ = Holding::kWanted;
    return true;
  }
  /// It holds still. What is to be copied now; look whether the hold is over().
  std::vector<ShardCopies::Seed> held(const std::vector<std::string>& able) {
    holding_ = Holding::kStill;
    auto seeds = copies_.seeds(able, replicas_);
    for (const auto& seed : seeds) under_way_.emplace(seed.shard, seed.to);
    return seeds;
  }
  /// `node` has the shard's state at the beginning of `step`. What nobody waits for is forgotten.
  bool made(const std::string& node, uint32_t shard, StepId step) {
    if (shard >= copies_.holders().size() || step != copies_.step(shard) ||
        under_way_.erase({shard, node}) == 0)
      return false;
    copies_.add(shard, node);
    return true;
  }
  /// With it, what it was to copy and what was to be copied from it. After ShardCopies::lose().
  void lost(const std::string& node, const ShardCopies::Loss& loss) {
    std::erase_if(under_way_, [&](const auto& copy) {
      return copy.second == node ||
             std::find(loss.moved.begin(), loss.moved.end(), copy.first) != loss.moved.end();
    });
  }
  /// True once for each hold, when nothing is under way any more: all nodes are to hear who holds
  /// what, and then the job goes on.
  bool over() {
    if (holding_ != Holding::kStill || !under_way_.empty()) return false;
    holding_ = Holding::kNot;
    return true;
  }

 private:
  enum class Holding { kNot, kWanted, kStill };
  ShardCopies& copies_;
  const int replicas_;
  Holding holding_ = Holding::kNot;
  std::set<std::pair<uint32_t, std::string>> under_way_;  // shard, by whom
};

}  // namespace fastserve
