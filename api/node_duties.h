// What a node does for its coordinator beside training: it serves models, and compresses them.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "api/local_node.h"
#include "api/shared_store.h"
#include "cluster/duty_runner.h"
#include "net/tls.h"

namespace fastserve {

/// Models lie in a store of the node's own, ROOT/node-models: they are fetched from the coordinator
/// before they are used, and stay for the next time, until the disk is short of space.
///
/// Owns:    that store while it is in use, and a thread for each duty.
/// Threads: any.
class NodeDuties {
 public:
  struct Around {
    NodeOptions options;  ///< root, lanes, log
    Isa isa = Isa::kPortable;
    std::vector<std::string> devices;  ///< as NodeOptions::device, each of one; a duty takes one
    std::string host;                  ///< by which others reach this node
    /// A connection of kModelsProtocol to the coordinator; blocks for seconds at most.
    std::function<Result<TlsConnection>()> dial;
  };
  explicit NodeDuties(Around around);
  ~NodeDuties();

  Status set(const std::string& orders);
  std::string reports();
  /// The coordinator wants to speak with a deployment, for a client of its own.
  void generate_connected(TlsConnection connection);

 private:
  using Tell = DutyRunner::Tell;
  Result<Json> work(const DutyOrder& order, const Tell& tell, const CancelFlag& cancel);
  /// One device, and how many duties are at work on it.
  struct Place {
    Place(NodeOptions options, Isa isa, std::shared_ptr<SharedStore> store)
        : node(std::move(options), isa, {}, std::move(store)) {}
    LocalNode node;
    int duties = 0;
  };
  /// Where it is worked on: the place with least to do. work() ends what this counts.
  Place& begin(const DutyOrder& order);
  Result<Json> serve(LocalNode& node, const DutyOrder& order, const Tell& tell,
                     const CancelFlag& cancel);
  Result<Json> compress(LocalNode& node, const DutyOrder& order, const Tell& tell,
                        const CancelFlag& cancel);
  Status fetch(const std::string& model, const Tell& tell, const CancelFlag& cancel);
  Status fetch_once(const std::string& model, const Tell& tell, const CancelFlag& cancel);
  Status make_room();
  Status speak_with(TlsConnection& connection);

  const Around around_;
  const SystemClock clock_;
  const std::shared_ptr<SharedStore> store_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Place>> places_;
  std::map<std::string, std::shared_ptr<Deployment>> deployed_;  // by duty
  std::map<std::string, int> in_use_;                            // duties by model
  std::unique_ptr<DutyRunner> runner_;
};

}  // namespace fastserve
