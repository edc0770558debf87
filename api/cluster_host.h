// The two long-lived processes of a cluster: the coordinator's, and a node's.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/file.h"
#include "base/log.h"
#include "cluster/control.h"

namespace fastserve {

/// Everything of a cluster's coordinator, in the folder ROOT/cluster: its authority, its state, its
/// jobs. Made once by init_cluster().
struct ClusterInit {
  Path root;                          ///< empty: default_root()
  std::string address = "127.0.0.1";  ///< to listen at; another than loopback is the user's word
  int port = 7070;
  std::string advertise;  ///< host that nodes and clients use; empty: `address`
};
struct ClusterMade {
  std::string cluster, join_token, admin_token, endpoint;  ///< endpoint: HOST:PORT for --join
};
/// kAlreadyExists when the folder holds a cluster. Opens no port.
Result<ClusterMade> init_cluster(const ClusterInit& init);

/// Whether tensors may travel without TLS, by the user's word: only between two ends that both say
/// so, each of which has the other's address in a network it trusts, and after both have shown
/// their certificates.
struct PlainBulk {
  bool allowed = false;
  std::vector<std::string> networks;  ///< beside this host: like "10.1.0.0/16"
};

struct CoordinatorOptions {
  Path root;
  std::string address;  ///< empty: as init_cluster() was told
  int port = -1;        ///< -1: the same
  PlainBulk plain_bulk;
  Log log;
};

/// The coordinator of a cluster, listening.
///
/// Owns:    the folder ROOT/cluster under a lock (kUnavailable: another process has it), its port
///          and threads.
/// Threads: any.
class CoordinatorHost {
 public:
  static Result<std::unique_ptr<CoordinatorHost>> start(const CoordinatorOptions& options);
  /// Jobs stop at once; they go on when the coordinator is started again.
  virtual ~CoordinatorHost() = default;
  virtual ClusterControl& control() = 0;
  virtual const std::string& endpoint() const = 0;
};

struct NodeHostOptions {
  Path root;                       ///< its identity lies in ROOT/node
  std::string join;                ///< HOST:PORT of the coordinator; empty: where it joined before
  std::string token;               ///< empty: it has joined before
  std::string name;                ///< empty: the host's name, or as it joined
  std::vector<std::string> roles;  ///< empty: trainer, parameter-server
  int lanes = 0;                   ///< 0: every usable core
  std::string device = "auto";     ///< as NodeOptions::device
  std::string address = "127.0.0.1";  ///< its bulk lane listens here ...
  int port = 0;                       ///< ... 0: any
  std::string advertise;              ///< how peers reach it; empty: `address`
  PlainBulk plain_bulk;
  int streams = 0;  ///< of each lane that it dials, up to 16; 0: as many as the way is long
  Log log;
};

/// A node of a cluster: joins, works, reconnects.
class NodeHost {
 public:
  /// Returns once the node has joined and listens; the connection to the coordinator may come
  /// later, and comes again whenever it is lost.
  static Result<std::unique_ptr<NodeHost>> start(const NodeHostOptions& options);
  virtual ~NodeHost() = default;
  virtual const std::string& name() const = 0;
  /// Blocks until `cancel` is raised (no error) or the node is of no further use: it was removed
  /// from the cluster, or another node goes by its name.
  virtual Status run(const CancelFlag& cancel) = 0;
};

}  // namespace fastserve
