// Which nodes of a job hold which shard, when each shard is held by more than one.
#pragma once

#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

namespace fastserve {

/// Of each shard the nodes that hold it. The first leads: it sends the weights to those that do not
/// hold it, and is asked for its state. All get the same gradients and the same orders, so all have
/// the same bits, and any may take the first one's place.
using ShardHolders = std::vector<std::vector<std::string>>;

/// Adds to each shard's owner `replicas` more of the `serving` nodes, or as many as there are. What
/// one node leads is followed by all others alike, so that they share what it leaves behind.
ShardHolders place_copies(const std::vector<std::string>& owners,
                          const std::vector<std::string>& serving, int replicas);

/// Takes all copies of a shard for one: it has gathered, or is ready, when the last copy is.
///
/// Threads:  not thread-safe; the coordinator's.
/// Promises: what a job is told of a shard holds for each copy that is left. So any of them can go
///           on alone: it has every gradient that counts, and no order that others have not had.
class ShardCopies {
 public:
  /// All copies are at the beginning of step `first`.
  ShardCopies(ShardHolders holders, StepId first);

  const ShardHolders& holders() const { return holders_; }
  const std::string& leader(uint32_t shard) const { return holders_[shard].front(); }
  /// Whether a shard has no other copy than the node's.
  bool needed(const std::string& node) const;
  /// Copies beside the leading one, of the shard that has fewest.
  int fewest() const;

  struct Gathered {
    uint32_t shard;
    StepId step;
    std::vector<double> squares;
  };
  struct Ready {
    uint32_t shard;
    StepId step;
  };
  /// A copy has the whole step's gradient; the shard's, when it was the last. kCorrupt when copies
  /// differ. What is repeated, or from a node that holds no copy (any more), changes nothing.
  Result<std::optional<Gathered>> gathered(const std::string& node, uint32_t shard, StepId step,
                                           std::vector<double> squares);
  /// A copy has applied or skipped the step; whether it was the last.
  bool applied(const std::string& node, uint32_t shard, StepId step);

  struct Loss {
    size_t copies = 0;
    std::vector<Gathered> gathered;  ///< shards that waited for the lost copy alone
    std::vector<Ready> ready;
    std::vector<uint32_t> moved;  ///< shards that are led by another node now
  };
  /// Requires that the node is not needed().
  Loss lose(const std::string& node);

  /// The step that the shard is in, as far as its slowest copy.
  StepId step(uint32_t shard) const { return shards_[shard].step; }
  /// Whether a copy of the shard's state for `step` is the first that comes: what one node was
  /// asked for another may have been asked for, too. `best`: the weights alone.
  bool takes(uint32_t shard, StepId step, bool best);

  struct Seed {
    uint32_t shard;
    std::string from, to;
  };
  /// Copies to be made by the `serving` nodes, so that each shard has `replicas` of them again;
  /// each is made by who holds least.
  std::vector<Seed> seeds(const std::vector<std::string>& serving, int replicas) const;
  /// A copy has been made. Requires that all copies of the shard are ready for the same step, of
  /// which no gradient has been asked for.
  void add(uint32_t shard, const std::string& node);

 private:
  struct Copy {
    bool gathered = false;  // the step that it is in
    StepId step;
  };
  struct Shard {
    std::vector<Copy> copies;           // as its holders
    std::vector<double> squares;        // of the step, from whoever was first
    bool known = false;                 // the squares are there
    bool told = false;                  // of having gathered
    StepId step;                        // told to be ready for
    std::optional<StepId> state, best;  // taken
  };
  Copy* find(const std::string& node, uint32_t shard);
  std::optional<Gathered> whole(uint32_t shard);
  bool ready(uint32_t shard);

  ShardHolders holders_;
  std::vector<Shard> shards_;
};

/// The same as one node knows it.
///
/// Threads: any.
class HeldShards {
 public:
  explicit HeldShards(std::string me) : me_(std::move(me)) {}

  /// The shards that this node leads from now on, and did not before.
  std::vector<uint32_t> set(ShardHolders holders);
  bool holds(uint32_t shard) const { return holds(shard, me_); }
  bool holds(uint32_t shard, const std::string& node) const;
  bool leads(uint32_t shard) const;
  /// Who holds it beside this node.
  std::vector<std::string> others(uint32_t shard) const;

 private:
  bool leads_in(const ShardHolders& holders, uint32_t shard) const {
    return shard < holders.size() && !holders[shard].empty() && holders[shard].front() == me_;
  }

  const std::string me_;
  mutable std::mutex mutex_;
  ShardHolders holders_;
};

}  // namespace fastserve
