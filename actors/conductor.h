// The coordinator's side of one incarnation of a job that runs on other nodes.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "actors/cluster_messages.h"
#include "actors/coordinator.h"
#include "actors/piece_collector.h"
#include "net/lane_hub.h"

namespace fastserve {

/// A node that takes part in a job.
struct JobNode {
  std::string name;
  NodeActor actor;
  wire_messages::Place place;
  int lanes = 1;
  bool trains = true, serves = true;  ///< serves: holds parameters
};
inline Error lost_error(const std::string& node, const std::string& why) {
  return {ErrorCode::kUnavailable, "is lost: " + why, "node " + node, ""};
}

namespace messages {
struct StateHere {  // a tensor with a shard's state has arrived
  uint32_t shard;
  std::shared_ptr<const ShardState> part;
  bool best;
};
struct NodeJoins {
  JobNode node;
};
}  // namespace messages
}  // namespace fastserve

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::StateHere)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::NodeJoins)

namespace fastserve {

/// What a node does in the job, as seen from outside.
struct Member {
  bool ready = false;
  std::optional<TrainerId> trainer;
  double share = 0, microbatches_per_second = 0;
};

/// Threads: any.
class MemberTable {
 public:
  void set(const std::string& node, Member member);
  void drop(const std::string& node);
  /// Takes the trainers' shares and rates over from the job.
  void measure(const TrainingJob& job);
  std::map<std::string, Member> all() const;
  /// Of a trainer that is there, or was.
  std::string name_of(TrainerId trainer) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::string, Member> members_;
  std::map<TrainerId, std::string> names_;
};

struct ConductorParts {
  uint64_t job = 0;  ///< names the incarnation
  std::string name;  ///< the job's id
  TrainSpec spec;    ///< complete
  TrainPlan plan;
  uint64_t windows = 1;
  uint32_t evaluation_chunks = 0;
  int64_t evaluation_counted = 0;
  std::vector<JobNode> nodes;  ///< to begin with; at least one trains and one serves
  // Where it begins.
  JobState state;
  std::shared_ptr<const std::vector<float>> weights, m, v, best;  ///< m, v, best may be null
  // The data as token files.
  std::shared_ptr<const std::string> train_file, validation_file;  ///< the latter may be null
  uint64_t data_fingerprint = 0;

  LaneHub* hub = nullptr;
  const Clock* clock = nullptr;
  const CancelFlag* cancel = nullptr;
  CheckpointWriterActor writer;
  PieceCollectorActor collector;       ///< the writer, when nodes keep the checkpoints; else null
  std::shared_ptr<LedgerFile> ledger;  ///< may be null
  CoordinatorActor coordinator;  ///< set by the conductor; to be waited for once that has ended
  std::function<void(const TrainProgress&)> progress;
  std::shared_ptr<MemberTable> members;
  /// Copies of the shard that has fewest, beside the one that leads.
  std::shared_ptr<std::atomic<int>> copies = std::make_shared<std::atomic<int>>(0);
  /// Two nodes cannot reach each other; a node cannot do its part. Called from the conductor.
  std::function<void(const std::string& node, const std::string& peer)> apart;
  std::function<void(const std::string& node, const Error& why)> failed;
  Log log;
  std::shared_ptr<Completion> completion;
};

using ConductorShell = caf::typed_actor<
    caf::reacts_to<wire_messages::PartOpened, PartActor>, caf::reacts_to<wire_messages::PartReady>,
    caf::reacts_to<wire_messages::PartFailed>, caf::reacts_to<wire_messages::UnitDone>,
    caf::reacts_to<wire_messages::ShardGathered>, caf::reacts_to<wire_messages::DisplacementHere>,
    caf::reacts_to<wire_messages::ShardApplied>, caf::reacts_to<wire_messages::CopyMade>,
    caf::reacts_to<wire_messages::PeerLost>, caf::reacts_to<messages::Hold>,
    caf::reacts_to<wire_messages::ShardCopied>, caf::reacts_to<wire_messages::PieceKept>,
    caf::reacts_to<messages::Begin>, caf::reacts_to<messages::StateHere>,
    caf::reacts_to<messages::NodeJoins>, caf::reacts_to<messages::PeerGone>,
    caf::reacts_to<messages::Tick>>;

/// Opens parts on the nodes, brings them data and weights, and runs the job's coordinator over
/// them. Spawn it detached and send it Begin.
///
/// The completion is set once. kUnavailable in it: a node was lost whose loss the incarnation does
/// not survive; another one may go on from the last checkpoint. When the actor ends, so do the
/// parts.
ConductorShell::behavior_type conductor(ConductorShell::pointer self,
                                        std::shared_ptr<ConductorParts> parts);

}  // namespace fastserve
