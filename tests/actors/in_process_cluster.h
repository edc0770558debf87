// A coordinator and nodes in one process, connected by socket pairs instead of TLS.
#pragma once

#include <doctest/doctest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
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
  /// `streams`: of each lane for tensors.
  explicit InProcessCluster(Log log = {}, int streams = 1)
      : log_(std::move(log)), streams_(streams) {
    start_coordinator();
  }
  ~InProcessCluster() {
    while (!nodes_.empty()) kill(nodes_.begin()->first);
    coordinator_ = nullptr;
  }

  ClusterCoordinator& coordinator() { return *coordinator_; }
  /// What nodes that are added from now on compute on, as ClusterNode::Config's.
  void compute_on(DeviceFactory make_device, DeviceFactory make_host,
                  std::vector<DeviceFactory> more_devices = {}) {
    make_device_ = std::move(make_device);
    make_host_ = std::move(make_host);
    more_devices_ = std::move(more_devices);
  }

  void start_coordinator() {
    std::lock_guard lock(mutex_);
    const auto renew = [](const NodeClaim& claim, const std::string& request) {
      return Result<std::string>(claim.node + ": certified " + request);
    };
    const auto admitted = [this](const NodeClaim& claim) {
      std::lock_guard removal(removed_mutex_);
      asked_[claim.node]++;
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
    config.more_devices = more_devices_;
    config.host = "in-process";
    config.data_folder = folder_.path / name;
    config.clock = &clock_;
    config.log = log_;
    const auto to_coordinator = [this, name](int streams, auto hand_over) -> Result<TlsConnection> {
      std::lock_guard lock(mutex_);
      if (coordinator_ == nullptr)
        return Error{ErrorCode::kUnavailable, "does not listen", "the coordinator", ""};
      auto [here, there] = connection(name, "coordinator", streams);
      hand_over(*coordinator_, std::move(there));
      return std::move(here);
    };
    config.dial_control = [=] {
      return to_coordinator(1, [](ClusterCoordinator& coordinator, TlsConnection connection) {
        coordinator.control_connected(std::move(connection));
      });
    };
    config.dial_bulk = [=, this] {
      return to_coordinator(streams_,
                            [](ClusterCoordinator& coordinator, TlsConnection connection) {
                              coordinator.bulk_connected(std::move(connection));
                            });
    };
    config.dial_peer = [this, name](const std::string& peer, const std::string&,
                                    int) -> Result<TlsConnection> {
      {
        std::unique_lock lock(hold_mutex_);
        if (held_.contains(peer)) dials_held_++;
        released_.notify_all();
        released_.wait(lock, [&] { return !held_.contains(peer); });
      }
      std::lock_guard lock(nodes_mutex_);
      const auto it = nodes_.find(peer);
      if (it == nodes_.end())
        return Error{ErrorCode::kUnavailable, "does not listen", "node " + peer, ""};
      auto [here, there] = connection(name, peer, streams_);
      it->second->node->bulk_connected(std::move(there));
      return std::move(here);
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

  /// Cuts one stream of the lane that `from` dialled to `to`; false when there is none.
  bool cut_stream(const std::string& from, const std::string& to, size_t index) {
    std::lock_guard lock(cuts_mutex_);
    const auto it = cuts_.find({from, to});
    if (it == cuts_.end() || index >= it->second.size()) return false;
    it->second[index].cut();
    return true;
  }

  /// Takes a node from the membership, whether or not the coordinator runs.
  void disown(const std::string& name) {
    std::lock_guard lock(removed_mutex_);
    removed_.insert(name);
  }
  /// How often nodes have asked whether it belongs here.
  int asked_about(const std::string& name) {
    std::lock_guard lock(removed_mutex_);
    return asked_[name];
  }
  /// Who dials the node gets no answer until this is taken back.
  void hold_dials_to(const std::string& name, bool hold) {
    std::lock_guard lock(hold_mutex_);
    if (hold)
      held_.insert(name);
    else
      held_.erase(name);
    released_.notify_all();
  }
  bool wait_for_held_dials(int count) {
    std::unique_lock lock(hold_mutex_);
    return released_.wait_for(lock, std::chrono::seconds(30), [&] { return dials_held_ >= count; });
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

  /// Both ends, as if `from` had dialled `to`.
  std::pair<TlsConnection, TlsConnection> connection(const std::string& from, const std::string& to,
                                                     int streams) {
    TlsConnection here{nullptr, NodeClaim{"c", to, {}, 0}, ""};
    TlsConnection there{nullptr, NodeClaim{"c", from, {}, 0}, ""};
    for (int i = 0; i < streams; i++) {
      auto [near, far] = stream_pair();
      {
        std::lock_guard lock(cuts_mutex_);
        cuts_[{from, to}].resize(static_cast<size_t>(streams));
        cuts_[{from, to}][static_cast<size_t>(i)] = StreamCut(*near);
      }
      (i == 0 ? here.stream : here.more.emplace_back()) = std::move(near);
      (i == 0 ? there.stream : there.more.emplace_back()) = std::move(far);
    }
    return {std::move(here), std::move(there)};
  }

  Log log_;
  const int streams_;
  SystemClock clock_;
  Folder folder_;
  DeviceFactory make_device_, make_host_;
  std::vector<DeviceFactory> more_devices_;
  uint64_t epoch_ = 0;
  std::mutex mutex_;  // guards coordinator_ while nodes dial
  std::unique_ptr<ClusterCoordinator> coordinator_;
  std::mutex removed_mutex_;
  std::set<std::string> removed_;
  std::map<std::string, int> asked_;
  std::mutex hold_mutex_;
  std::condition_variable released_;
  std::set<std::string> held_;
  int dials_held_ = 0;
  std::mutex cuts_mutex_;
  std::map<std::pair<std::string, std::string>, std::vector<StreamCut>> cuts_;  // of each lane
  std::mutex nodes_mutex_;
  std::map<std::string, std::string> renewed_;
  std::map<std::string, std::shared_ptr<Running>> nodes_;
};

}  // namespace fastserve
