// The copies of a job's shards, as its conductor deals with them. For conductor.cc alone.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "actors/conductor.h"
#include "actors/remote_actors.h"
#include "train/copy_maker.h"

namespace fastserve {

/// Carries what parts say of their copies to the job, and what becomes of copies to the parts.
///
/// Threads: the conductor's.
class JobCopies {
 public:
  struct Around {
    ConductorShell::pointer self;
    /// A node's part; null: none yet, or any more.
    std::function<PartActor(const std::string& node)> part;
    /// Nodes that hold parameters, or could.
    std::function<std::vector<std::string>()> able;
    std::function<void()> tell_all;  ///< sends holders() to all parts
  };
  JobCopies(Around around, ShardHolders holders, StepId first, int replicas);

  const ShardHolders& holders() const { return copies_.holders(); }
  bool needed(const std::string& node) const { return copies_.needed(node); }
  int fewest() const { return copies_.fewest(); }

  /// Spawns what stands for the shards beside the coordinator.
  std::vector<RemoteShardActor> begin(CoordinatorActor coordinator);
  /// An error ends the incarnation.
  Status gathered(const wire_messages::ShardGathered& gathered);
  void applied(const wire_messages::ShardApplied& applied);
  /// Whether the coordinator is to have it.
  bool takes(const messages::StateHere& here);
  /// Shards that other nodes lead now.
  size_t lose(const std::string& node);
  /// A node can hold more now.
  void came();
  /// The job holds still.
  void held();
  void made(const wire_messages::CopyMade& made);

 private:
  void tell(ShardCopies::Gathered whole);
  void look_at_hold();
  std::vector<PartActor> parts_of(uint32_t shard) const;

  const Around around_;
  const int replicas_;
  ShardCopies copies_;
  CopyMaker maker_;
  std::vector<RemoteShardActor> proxies_;
  CoordinatorActor coordinator_;
};

}  // namespace fastserve
