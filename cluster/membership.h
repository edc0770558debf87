// Who belongs to a cluster: its nodes, and the tokens that let nodes join and clients in.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.h"
#include "cluster/control.h"
#include "cluster/forward_time.h"
#include "cluster/member_records.h"
#include "net/identity.h"
#include "net/join_documents.h"
#include "store/state_store.h"

namespace fastserve {

/// The name and role of the coordinator's own certificate; no node may have either.
inline constexpr const char* kCoordinatorName = "coordinator";

/// Node certificates last this long, and are renewed when a third of it is left.
inline constexpr int64_t kCertificateSeconds = 30 * 24 * 3600;
/// Whether the holder of this certificate should ask for its next one. A node that asks when it
/// starts and each day from then on may be off for ten days and need not join again.
bool renewal_due(const NodeClaim& claim, int64_t now_unix);

/// The coordinator's memory of nodes and tokens.
///
/// Owns:     records "membership/..." of the state; the state and the authority outlive it.
/// Threads:  any.
/// Promises: what a call answered survives a power cut. Each opening has a higher epoch than all
///           before it, so that what an earlier coordinator says can be told apart. (Epochs are at
///           least the time of day, so that this holds for a state from an older backup, too, whose
///           nodes have seen later ones.) Secrets of tokens are in no record.
/// Errors:   kInvalidArgument for what may not be, kNotFound and kAlreadyExists by name, each with
///           what to do; and the state's own, after which nothing has changed.
class Membership {
 public:
  /// Begins a cluster in an empty state. kAlreadyExists when it holds one.
  static Status create(StateStore& state, const CertificateAuthority& authority);
  /// Raises the epoch. kCorrupt when the state is empty, damaged or of another authority's cluster.
  static Result<std::unique_ptr<Membership>> open(StateStore& state, const Clock& clock,
                                                  const CertificateAuthority& authority);

  uint64_t epoch() const { return epoch_; }
  const std::string& cluster() const { return authority_.cluster(); }

  // Tokens ----------------------------------------------------------------------------------------

  static constexpr int64_t kDay = 24 * 3600;
  static constexpr int64_t kJoinSeconds = kDay;          ///< what a lifetime of 0 means ...
  static constexpr int64_t kAccessSeconds = 365 * kDay;  ///< ... for each kind

  /// A new token's text, which is shown once and then known to its holder alone. Lifetimes are a
  /// minute to ten years; `uses`: nodes that may join by it, 0: any number.
  Result<std::string> make_join_token(int64_t lifetime_seconds, int64_t uses,
                                      const std::string& label);
  Result<std::string> make_access_token(AccessRole role, int64_t lifetime_seconds,
                                        const std::string& label);

  struct Access {
    AccessRole role;
    std::string id, label;  ///< of the token, for logs
  };
  /// What the holder of this access token may do.
  Result<Access> access(const std::string& token);

  std::vector<TokenRecord> tokens() const;  ///< the oldest first, expired ones too
  Status revoke_token(const std::string& id);

  // Nodes -----------------------------------------------------------------------------------------

  /// A name is kept for a node this long after it was last heard of. Then whoever holds a join
  /// token may take it over: a node whose disk was lost comes back by the name it had.
  static constexpr Nanoseconds kNameHeld = std::chrono::seconds(60);

  /// Lets a node in and certifies its key. The same key may join again, which uses no token up: its
  /// answer may have been lost.
  Result<JoinGrant> join(const JoinAsk& ask, const std::string& our_version);
  /// Whether a certificate is still that of a node: not when it was removed, or its name has gone
  /// over to another key.
  Status admitted(const NodeClaim& claim);
  /// The node's next certificate, for the key it has or a new one. `claim` is what its connection
  /// has proven. The old key is let in until the new one has been seen.
  Result<std::string> renew(const NodeClaim& claim, const std::string& request_pem);

  /// The node has shown that it lives: keeps its name from being taken over.
  void heard(const std::string& node);
  std::vector<MemberRecord> nodes() const;  ///< by name
  Status set_draining(const std::string& node, bool draining);
  Status remove(const std::string& node);

  // Clocks ----------------------------------------------------------------------------------------

  /// What is wrong with this machine's clock as far as one can tell from here; empty: nothing.
  std::string clock_note();

 private:
  Membership(StateStore& state, const Clock& clock, const CertificateAuthority& authority,
             std::string fingerprint)
      : state_(state),
        clock_(clock),
        authority_(authority),
        fingerprint_(std::move(fingerprint)),
        time_(clock) {}
  Status load();
  Result<std::string> make(TokenRecord record, int64_t lifetime_seconds);
  Result<TokenRecord*> find_token(const std::string& text, bool joins);
  Status admit(const NodeClaim& claim);
  Status check_ask(const JoinAsk& ask) const;
  Status check_name_free(const MemberRecord& holder, const std::string& key) const;
  Result<std::string> certify(const MemberRecord& node, const std::string& request_pem) const;
  Result<MemberRecord*> find_node(const std::string& name);
  Status change(const MemberRecord& node);

  StateStore& state_;
  const Clock& clock_;
  const CertificateAuthority& authority_;
  const std::string fingerprint_;
  uint64_t epoch_ = 0;
  int64_t last_opened_unix_ = 0;  // by the coordinator before this one

  mutable std::mutex mutex_;  // guards what follows
  ForwardTime time_;
  std::map<std::string, TokenRecord> tokens_;  // by id
  std::map<std::string, MemberRecord> nodes_;  // by name
  std::map<std::string, Nanoseconds> heard_;   // by name
};

}  // namespace fastserve
