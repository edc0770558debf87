// A cluster's coordinator: knows its nodes, and runs training jobs over them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "actors/training_system.h"
#include "cluster/control.h"
#include "net/tls.h"

namespace fastserve {

/// What TLS calls a node's connections: CAF's, and those for tensors.
inline constexpr const char* kControlProtocol = "fastserve-control/1";
inline constexpr const char* kBulkProtocol = "fastserve-bulk/3";
inline constexpr const char* kPlainBulkProtocol = "fastserve-bulk/3+plain";

/// How a job stands, beside what TrainProgress says.
struct ClusterRun {
  uint64_t incarnation = 0;
  int64_t replayed_steps = 0;
  std::string waiting_for;  ///< empty: it runs
  int replicas = 0;         ///< nodes that hold each shard beside the leading one, at the least
};

/// Owns:     an actor system that opens no port; lanes and actors for each node.
/// Threads:  any.
/// Promises: a job's weights have the bits that it would have had in one process of the same
///           numerics id, whatever is lost meanwhile.
class ClusterCoordinator {
 public:
  struct Config {
    uint64_t epoch = 1;  ///< higher than any coordinator's before
    const Clock* clock = nullptr;
    Log log;
    /// A node's next certificate for the key of its request. Empty: nodes cannot renew.
    std::function<Result<std::string>(const NodeClaim& claim, const std::string& request)> renew;
    /// Whether a certificate is still that of a node: asked when one connects to another. Empty: it
    /// is.
    std::function<Status(const NodeClaim& claim)> admitted;
    /// What a node says of its duties (cluster/duty.h). Called by an actor: be quick.
    std::function<void(const std::string& node, const std::string& reports)> duty_reports;
    /// Ids of jobs whose pieces of checkpoints nodes are to keep: asked for when one connects.
    /// Empty: whatever they have.
    std::function<std::vector<std::string>()> jobs;
  };
  static Result<std::unique_ptr<ClusterCoordinator>> start(Config config);
  /// Jobs end at once, without a checkpoint; train() returns, and no job begins any more.
  void stop();
  /// Ends jobs at once, without a checkpoint.
  ~ClusterCoordinator();

  /// A node's connections, whose claim has been proven. They return soon.
  void control_connected(TlsConnection connection);
  void bulk_connected(TlsConnection connection);

  std::vector<NodeStatus> nodes() const;
  void set_draining(const std::string& node, bool draining);
  /// All that the node is to do beside jobs, from now on and whenever it connects again.
  void set_duties(const std::string& node, const std::string& orders);
  /// The job goes on no more: its pieces of checkpoints leave the nodes' disks.
  void forget_pieces(const std::string& job);
  /// Cuts the node off, here and at the other nodes; the rest is the membership's.
  void forget(const std::string& node);

  /// Runs a job over the nodes that there are, and those that come, until it ends; as
  /// TrainingSystem's start() and wait() do. `id` names it; `run` is called with each change.
  /// Waits while there are no nodes. Of the config, placement, device and resumption settings are
  /// not used: a job goes on from its newest checkpoint, if it has one.
  Result<TrainOutcome> train(TrainingSystem::Config config, const std::string& id,
                             const std::function<void(const ClusterRun&)>& run);

 private:
  struct State;
  explicit ClusterCoordinator(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace fastserve
