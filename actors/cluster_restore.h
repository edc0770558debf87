// Which checkpoint a cluster's job goes on from, and its floats. For actors/ alone.
#pragma once

#include <optional>

#include "actors/cluster_run.h"
#include "actors/piece_fetch.h"

namespace fastserve {

/// Looks for the newest checkpoint that can be had, on the coordinator's disk and on those of
/// connected nodes; waits for nodes that are away and have what is missing.
class CheckpointRestore {
 public:
  struct Around {
    PieceFetch::Around fetching;
    std::function<NodesByName()> nodes;  ///< connected ones
    std::function<void(const std::string& waiting_for)> say;
    const Clock* clock;
  };
  CheckpointRestore(Around around, const CheckpointDirectory& directory, std::string job)
      : around_(std::move(around)), directory_(directory), job_(std::move(job)) {}

  /// Nothing: the job has none yet. kNotFound: it has some, none of which can be had; kCancelled.
  Result<std::optional<Checkpoint>> newest();

 private:
  void load_all();
  std::vector<PieceVerdict> verdicts(const NodesByName& nodes);
  bool fetch(Checkpoint& checkpoint, const NodesByName& nodes);
  Error lost(const std::vector<PieceVerdict>& verdicts) const;

  const Around around_;
  const CheckpointDirectory& directory_;
  const std::string job_;
  std::vector<Checkpoint> all_;  // newest first; the first with floats of its own is the last
  PieceHoldings holdings_;
  std::map<int64_t, std::unique_ptr<PieceFetch>> fetching_;  // by step
  std::set<int64_t> said_lost_;
};

}  // namespace fastserve
