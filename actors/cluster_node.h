// A node of a cluster: its actors, for as long as its process lives.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "model/device.h"
#include "net/tls.h"

namespace fastserve {

/// Connects to the coordinator, works for its jobs, and connects again whenever the connection is
/// lost.
///
/// Owns:    an actor system that opens no port; lanes to its peers.
/// Threads: any.
class ClusterNode {
 public:
  struct Config {
    std::string name;
    std::vector<std::string> roles;
    int lanes = 1;
    DeviceFactory make_device;  ///< empty: the CPU
    DeviceFactory make_host;    ///< set when those have memory of their own: the CPU beside them
    /// More devices of that kind: a part of a job has a trainer on each.
    std::vector<DeviceFactory> more_devices;
    std::string host;  ///< where peers reach `bulk_connected`
    int port = 0;
    Path data_folder;
    Path pieces_folder;  ///< of checkpoints; empty: below data_folder
    const Clock* clock = nullptr;
    Log log;
    /// Connections to the coordinator: for control and for tensors. They block for seconds at most.
    std::function<Result<TlsConnection>()> dial_control, dial_bulk;
    /// A connection for tensors to a peer.
    std::function<Result<TlsConnection>(const std::string& node, const std::string& host, int port)>
        dial_peer;
    /// The request for the next certificate when that is due; asked for now and then.
    std::function<std::optional<std::string>()> renewal;
    std::function<Status(const std::string& certificate)> renewed;
    /// What the node is to do beside jobs (cluster/duty.h), and how it goes; empty: nothing.
    std::function<Status(const std::string& orders)> duties;
    std::function<std::string()> duty_reports;
  };
  static Result<std::unique_ptr<ClusterNode>> start(Config config);
  ~ClusterNode();

  /// Whether a peer that shows this certificate may connect for tensors: the coordinator is asked.
  /// kUnavailable without one.
  Status admitted(const NodeClaim& claim);
  /// Such a peer has connected.
  void bulk_connected(TlsConnection connection);
  /// Until `cancel` is raised, or the coordinator refuses this node for good.
  Status run(const CancelFlag& cancel);

 private:
  struct State;
  explicit ClusterNode(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace fastserve
