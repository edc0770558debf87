// A coordinator and nodes in one process, connected by socket pairs instead of TLS.
#pragma once

#include <doctest/doctest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "actors/cluster_coordinator.h"
#include "actors/cluster_node.h"
#include "jobs.h"

namespace fastserve {

inline std::pair<std::unique_ptr<Stream>, std::unique_ptr<Stream>> stream_pair() {
  int fds[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
  return {plain_stream(Socket(fds[0]), "one"), plain_stream(Socket(fds[1]), "other")};
}

class InProcessCluster {
 public:
  explicit InProcessCluster(Log log = {}) : log_(std::move(log)) { start_coordinator(); }
  ~InProcessCluster() {
    while (!nodes_.empty()) kill(nodes_.begin()->first);
    coordinator_ = nullptr;
  }

  ClusterCoordinator& coordinator() { return *coordinator_; }
  /// What nodes that are added from now on compute on, as ClusterNode::Config's.
  void compute_on(DeviceFactory make_device, DeviceFactory make_host) {
    make_device_ = std::move(make_device);
    make_host_ = std::move(make_host);
  }

  void start_coordinator() {
    std::lock_guard lock(mutex_);
    const auto renew = [](const NodeClaim& claim, const std::string& request) {
      return Result<std::string>(claim.node + ": certified " + request);
    };
    const auto admitted = [this](const NodeClaim& claim) {
      std::lock_guard removal(removed_mutex_);
      if (!removed_.contains(claim.node)) return Status();
      return Status(Error{ErrorCode::kInvalidArgument, "was removed", claim.node, ""});
    };
    coordinator_ =
        ClusterCoordinator::start({++epoch_, &clock_, log_, renew, admitted, {}, {}}).value();
  }
  /// As a crash would: whoever is connected sees the connection end.
  void kill_coordinator() {
    std::unique_ptr<ClusterCoordinator> gone;
    {
      std::lock_guard lock(mutex_);
      gone = std::move(coordinator_);
    }
    gone = nullptr;
  }

  void add(const std::string& name, int lanes = 1,
           std::vector<std::string> roles = {"trainer", "parameter-server"}) {
    ClusterNode::Config config;
    config.name = name;
    config.roles = std::move(roles);
    config.lanes = lanes;
    config.make_device = make_device_;
    config.make_host = make_host_;
    config.host = "in-process";
    config.data_folder = folder_.path / name;
    config.clock = &clock_;
    config.log = log_;
    const auto to_coordinator = [this, name](auto hand_over) -> Result<TlsConnection> {
      std::lock_guard lock(mutex_);
      if (coordinator_ == nullptr)
        return Error{ErrorCode::kUnavailable, "does not listen", "the coordinator", ""};
      auto [here, there] = stream_pair();
      hand_over(*coordinator_, TlsConnection{std::move(there), NodeClaim{"c", name, {}, 0}, ""});
      return TlsConnection{std::move(here), NodeClaim{"c", "coordinator", {}, 0}, ""};
    };
    config.dial_control = [=] {
      return to_coordinator([](ClusterCoordinator& coordinator, TlsConnection connection) {
        coordinator.control_connected(std::move(connection));
      });
    };
    config.dial_bulk = [=] {
      return to_coordinator([](ClusterCoordinator& coordinator, TlsConnection connection) {
        coordinator.bulk_connected(std::move(connection));
      });
    };
    config.dial_peer = [this, name](const std::string& peer, const std::string&,
                                    int) -> Result<TlsConnection> {
      std::lock_guard lock(nodes_mutex_);
      const auto it = nodes_.find(peer);
      if (it == nodes_.end())
        return Error{ErrorCode::kUnavailable, "does not listen", "node " + peer, ""};
      auto [here, there] = stream_pair();
      it->second->node->bulk_connected({std::move(there), NodeClaim{"c", name, {}, 0}, ""});
      return TlsConnection{std::move(here), NodeClaim{"c", peer, {}, 0}, ""};
    };
    config.renewal = [name] { return std::optional("request of " + name); };
    config.renewed = [this, name](const std::string& certificate) {
      std::lock_guard lock(nodes_mutex_);
      renewed_[name] = certificate;
      return Status();
    };
    auto running = std::make_shared<Running>();
    running->node = ClusterNode::start(std::move(config)).value();
    {
      std::lock_guard lock(nodes_mutex_);
      nodes_[name] = running;
    }
    running->thread = std::thread(
        [running = running.get()] { running->end = running->node->run(running->cancel); });
  }

  /// As a crash would, but for what is already in the sockets.
  void kill(const std::string& name) {
    std::shared_ptr<Running> running;
    {
      std::lock_guard lock(nodes_mutex_);
      const auto it = nodes_.find(name);
      if (it == nodes_.end()) return;
      running = std::move(it->second);
      nodes_.erase(it);
    }
    running->cancel.raise();
    running->thread.join();
    running->node = nullptr;
  }

  /// Where a node's pieces of checkpoints lie.
  Path disk(const std::string& name) const { return folder_.path / name / "checkpoints"; }
  /// Of a node that does not run.
  void lose_disk(const std::string& name) { std::filesystem::remove_all(disk(name)); }

  /// Takes a node from the membership, whether or not the coordinator runs.
  void disown(const std::string& name) {
    std::lock_guard lock(removed_mutex_);
    removed_.insert(name);
  }
  ClusterNode& node(const std::string& name) {
    std::lock_guard lock(nodes_mutex_);
    return *nodes_.at(name)->node;
  }

  std::string renewed(const std::string& node) {
    std::lock_guard lock(nodes_mutex_);
    return renewed_[node];
  }
  /// How the node's run() came back; it must do so by itself.
  Status end_of(const std::string& name) {
    std::shared_ptr<Running> running;
    {
      std::lock_guard lock(nodes_mutex_);
      running = std::move(nodes_.at(name));
      nodes_.erase(name);
    }
    running->thread.join();
    running->node = nullptr;
    return running->end;
  }

  void wait_for_nodes(size_t wanted) {
    for (int i = 0; i < 1000; i++) {
      size_t ready = 0;
      for (const NodeStatus& node : coordinator().nodes())
        ready += node.state == NodeStatus::State::kReady;
      if (ready == wanted) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    FAIL("the nodes did not come");
  }

 private:
  struct Running {
    std::unique_ptr<ClusterNode> node;
    std::thread thread;
    CancelFlag cancel;
    Status end;
  };

  Log log_;
  SystemClock clock_;
  Folder folder_;
  DeviceFactory make_device_, make_host_;
  uint64_t epoch_ = 0;
  std::mutex mutex_;  // guards coordinator_ while nodes dial
  std::unique_ptr<ClusterCoordinator> coordinator_;
  std::mutex removed_mutex_;
  std::set<std::string> removed_;
  std::mutex nodes_mutex_;
  std::map<std::string, std::string> renewed_;
  std::map<std::string, std::shared_ptr<Running>> nodes_;
};

}  // namespace fastserve
