// What a coordinator and a node keep on disk: ROOT/cluster and ROOT/node.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "cluster/membership.h"
#include "net/identity.h"
#include "store/state_store.h"

namespace fastserve {

/// As `fsctl cluster init` was told.
struct ClusterSettings {
  std::string cluster;  ///< id
  std::string address;  ///< to listen at
  int port = 0;
  std::string advertise;  ///< host by which others reach it
};

/// A coordinator that runs on this host, as it says itself in its folder.
struct RunningCoordinator {
  std::string host;  ///< where this host reaches it
  int port = 0;
  std::string token;  ///< of role admin: from admin-token
};

/// ROOT/cluster, readable by its owner alone:
///   settings.json  ClusterSettings
///   authority/     certificate and key of the authority: whoever has the key is the cluster
///   state/         nodes, tokens, jobs (store/state_store.h)
///   running.json   where this host reaches the coordinator, while one runs
///   admin-token    an access token for commands on this host; another after each start
///   lock           held by the coordinator
/// The coordinator's own key and certificate are in no file: it makes new ones when it starts.
///
/// Owns:    the folder, under its lock (kUnavailable: a coordinator has it).
/// Threads: one caller at a time, but for the state, which is any's.
/// Errors:  kNotFound when there is no cluster, kCorrupt for what does not belong together.
class ClusterFolder {
 public:
  static Path path_in(const Path& root) { return root / "cluster"; }
  static Result<std::unique_ptr<ClusterFolder>> open(const Path& root);

  const ClusterSettings& settings() const { return settings_; }
  const CertificateAuthority& authority() const { return authority_; }
  StateStore& state() { return *state_; }

  /// A new key and certificate for the coordinator, good for kCertificateSeconds: make the next
  /// when renewal_due().
  Result<Identity> make_identity(int64_t now_unix) const;

  /// Tells commands on this host how to reach the coordinator that runs, which listens at `address`
  /// and `port`, and gives them a new token; the one before it is revoked.
  Status announce(Membership& members, const std::string& address, int port);
  /// It runs no longer. One that was killed is noticed by its lock.
  void withdraw();

 private:
  ClusterFolder(Path folder, FileLock lock, ClusterSettings settings,
                CertificateAuthority authority, std::unique_ptr<StateStore> state)
      : folder_(std::move(folder)),
        lock_(std::move(lock)),
        settings_(std::move(settings)),
        authority_(std::move(authority)),
        state_(std::move(state)) {}

  const Path folder_;
  const FileLock lock_;
  const ClusterSettings settings_;
  const CertificateAuthority authority_;
  const std::unique_ptr<StateStore> state_;
};

/// kNotFound when none has announced itself in ROOT/cluster.
Result<RunningCoordinator> running_coordinator(const Path& root);
// Beside a coordinator that runs or not:
Result<ClusterSettings> read_cluster_settings(const Path& root);
Result<std::vector<TokenRecord>> list_cluster_tokens(const Path& root);
/// A new token for commands on this host, into `folder`; the one before it is revoked.
Status write_admin_token(const Path& folder, Membership& members);
/// Writes ROOT/cluster whole from what `fill` puts into a folder, or leaves nothing behind.
/// kAlreadyExists when there is one.
Status make_cluster_folder(const Path& root, const ClusterSettings& settings,
                           const std::function<Status(const Path& folder)>& fill);

/// What a node remembers of the cluster that it has joined.
struct NodeMembership {
  std::string cluster;      ///< id
  std::string coordinator;  ///< HOST:PORT
  std::string name;
  std::vector<std::string> roles;
  Identity identity;
};

/// ROOT/node, readable by its owner alone: node.json, and lock, held by the node.
///
/// Owns:    the folder, under its lock: kUnavailable when a node runs from it.
/// Threads: one caller at a time.
class NodeFolder {
 public:
  static Path path_in(const Path& root) { return root / "node"; }
  /// Made when there is none. kCorrupt for a node.json that cannot be read.
  static Result<std::unique_ptr<NodeFolder>> open(const Path& root);

  /// None: it has not joined.
  const std::optional<NodeMembership>& membership() const { return membership_; }
  /// The key to join with: the one it has, or one that is kept from now on. So a node whose answer
  /// was lost joins again as itself.
  Result<KeyAndRequest> join_key();
  /// It has joined, or has its next certificate, for the key of `request`.
  Status keep(const NodeMembership& membership, const std::string& request);

 private:
  NodeFolder(Path folder, FileLock lock) : folder_(std::move(folder)), lock_(std::move(lock)) {}
  Status load();
  Status write() const;

  const Path folder_;
  const FileLock lock_;
  std::optional<NodeMembership> membership_;
  std::optional<KeyAndRequest> key_;
};

}  // namespace fastserve
