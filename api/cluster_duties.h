// Deployments and compressions of a cluster: what the coordinator does about them.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "actors/cluster_coordinator.h"
#include "api/local_node.h"
#include "api/shared_store.h"
#include "cluster/duty_board.h"
#include "cluster/duty_runner.h"
#include "store/transfer.h"

namespace fastserve {

/// Looks at the nodes several times a second and sees to it that each does what the board says.
///
/// Owns:    the board, a thread, and those of compressions that the coordinator does itself.
/// Threads: any.
class ClusterDuties {
 public:
  struct Around {
    NodeOptions options;  ///< root, log
    Isa isa = Isa::kPortable;
    StateStore* state = nullptr;
    ClusterCoordinator* coordinator = nullptr;
    std::shared_ptr<SharedStore> store;
    const Clock* clock = nullptr;
    std::function<std::vector<NodeStatus>()> nodes;  ///< all that are members
  };
  /// What should be done goes on at once.
  static Result<std::unique_ptr<ClusterDuties>> start(Around around);
  /// Compressions that the coordinator does itself end, and begin anew when it is started again.
  ~ClusterDuties();

  /// The job's id. The model is looked up now; names that move later change nothing.
  Result<std::string> deploy(const Json& request);
  Result<std::string> compress(const Json& request);
  Status cancel(const std::string& id);
  Status remove(const std::string& id);

  /// kNotFound when it is none of ours.
  Result<ClusterJob> job(const std::string& id) const;
  std::vector<ClusterJob> jobs() const;
  /// Of nodes that do nothing else, what they do for us.
  void show_in(std::vector<NodeStatus>& nodes) const;
  Result<std::vector<std::string>> log(const std::string& id, uint64_t from, int most) const;

  /// From a node, as it came. Quick.
  void reported(const std::string& node, const std::string& reports);

  // For connections that carry models (api/transfer_desk.h).

  /// What answers for "name", "name@3" or "name@tag".
  Result<Duty> serving(const std::string& model) const;
  /// What a node's compression measures on, encoded. kInvalidArgument when it is not the node's.
  Result<std::string> text_for(const std::string& id, const std::string& node);
  /// What the model that a node's compression has made becomes here.
  Result<ReceiveAs> place_for(const std::string& id, const std::string& node,
                              ModelListing& listing) const;
  Status published(const std::string& id, const ModelRef& model);

 private:
  explicit ClusterDuties(Around around);
  void live();
  void tell_nodes();
  Result<ModelRef> resolve(const std::string& model) const;
  Result<Duty> of_node(const std::string& id, const std::string& node) const;
  Result<std::optional<Json>> made_before(const CompressRequest& request) const;
  Result<Json> compress_here(const DutyOrder& order, const DutyRunner::Tell& tell,
                             const CancelFlag& cancel) const;
  Status check_nodes(DutyKind kind, const std::string& pinned) const;

  const Around around_;
  std::unique_ptr<DutyBoard> board_;
  DutyRunner own_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool closing_ = false, news_ = false;
  std::map<std::string, std::string> orders_;  // as each node was sent them; the thread's
  std::thread thread_;
};

}  // namespace fastserve
