// Which nodes a coordinator knows, and how they are. For actors/ alone.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "actors/conductor.h"
#include "cluster/control.h"
#include "cluster/unfit_nodes.h"
#include "net/identity.h"

namespace fastserve {

/// Threads: any.
class NodeTable {
 public:
  explicit NodeTable(const Clock& clock) : clock_(clock) {}

  /// For a connection whose certificate says `node`: what the node must show in its hello.
  std::string issue_ticket(const NodeClaim& claim);
  /// What the node's connection has proven, for a message that says it is from there.
  Result<NodeClaim> claim_of(const wire_messages::Renew& renew) const;
  /// Whether the process is the one that is connected under the node's name.
  bool speaks_for(const std::string& node, uint64_t process) const;
  /// kInvalidArgument or kAlreadyExists refuses the node.
  Status hello(const wire_messages::NodeHello& hello, const NodeActor& actor);
  void tick(const wire_messages::NodeTick& tick);
  /// The name of the node that ended, if it is one of ours.
  std::optional<std::string> down(const caf::actor_addr& actor);
  void set_draining(const std::string& node, bool draining);
  /// Keeps the orders for when the node connects; its actor, if it is connected.
  NodeActor set_duties(const std::string& node, const std::string& orders);
  std::string duties(const std::string& node) const;
  /// Two nodes that are connected here could not reach each other: for a while one of them is not
  /// usable, and its status says so.
  void apart(const std::string& a, const std::string& b);
  /// The node could not do its part in a job: likewise, if that is of its own.
  void failed(const std::string& node, const Error& why);
  /// Forgets the node; its actor, if it is connected.
  NodeActor forget(const std::string& node);

  std::vector<NodeActor> connected() const;
  std::vector<std::pair<std::string, NodeActor>> connected_by_name() const;
  bool draining(const std::string& node) const;
  /// Whose shares and rates the nodes' statuses show; null: the job has ended.
  void watch(std::shared_ptr<MemberTable> members, const std::string& job, const TrainPlan& plan);

  std::vector<NodeStatus> all() const;
  /// Those that can take part in a job now; unfit ones only where it cannot be without. Of unlike
  /// devices GPUs, or those of the most lanes, unless `numerics` names the kind that is wanted and
  /// such nodes are there.
  std::vector<JobNode> usable(const std::string& numerics) const;
  /// The node itself, when it is connected.
  std::optional<wire_messages::NodeHello> find(const std::string& node) const;

 private:
  struct Entry {
    wire_messages::NodeHello hello;
    NodeActor actor;  // null: not connected
    NodeClaim claim;
    NodeStatus status;
    wire_messages::NodeTick last;
    Nanoseconds last_at{0};
    bool draining = false;
  };

  /// Whom to do without, and why. With the lock held.
  std::map<std::string, std::string> left_out() const;
  std::vector<JobNode> usable_but(const std::map<std::string, std::string>& out,
                                  const std::string& numerics) const;

  struct Watched {
    std::shared_ptr<MemberTable> members;
    double tokens_per_microbatch;
  };

  const Clock& clock_;
  mutable std::mutex mutex_;
  std::map<std::string, Entry> entries_;
  std::map<std::string, NodeClaim> tickets_;  // by ticket
  std::map<std::string, Watched> jobs_;
  std::map<std::string, std::string> duties_;  // orders by node
  UnfitNodes unfit_;
};

}  // namespace fastserve
