// TLS 1.3 around a socket: both sides of a cluster's connections prove who they are.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "net/identity.h"
#include "net/stream.h"

namespace fastserve {

/// A protocol whose name ends so is spoken without TLS once both sides have proven who they are:
/// what follows is neither secret nor safe from a network that changes it.
inline constexpr std::string_view kPlainEnding = "+plain";

/// A stream whose peer has proven what `claim` says. No claim: the peer showed no certificate,
/// which only a port that lets nodes join allows.
struct TlsConnection {
  std::unique_ptr<Stream> stream;
  std::optional<NodeClaim> claim;
  std::string protocol;                            ///< the one that both sides speak
  std::vector<std::unique_ptr<Stream>> more = {};  ///< to the same peer, of the same lane

  std::vector<std::unique_ptr<Stream>> all_streams() &&;
};

/// One side's certificate and whom it trusts.
///
/// Threads: any; connections are independent of each other and of this.
/// Errors:  kUnavailable for a connection that breaks, kDeadlineExceeded for a handshake that takes
///          longer than `timeout`, kInvalidArgument for a peer whose certificate is missing,
///          foreign, expired or of another node, with what to do.
class TlsParty {
 public:
  /// kCorrupt when the texts do not belong together.
  static Result<TlsParty> create(const Identity& identity);
  TlsParty(TlsParty&&) noexcept;
  TlsParty& operator=(TlsParty&&) noexcept;
  ~TlsParty();

  /// Speaks first. `node`: who must answer; empty: any node of the cluster. Of `protocols`, the one
  /// preferred first, the first that the peer offers is spoken.
  Result<TlsConnection> connect(Socket socket, const std::string& endpoint, const std::string& node,
                                const std::vector<std::string>& protocols,
                                Nanoseconds timeout) const;
  /// Answers. `open_protocols` may be spoken without a certificate.
  Result<TlsConnection> accept(Socket socket, const std::string& endpoint,
                               const std::vector<std::string>& protocols,
                               const std::vector<std::string>& open_protocols,
                               Nanoseconds timeout) const;

 private:
  struct State;
  explicit TlsParty(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Connects without a certificate to an authority that is known by its fingerprint: what a node
/// does before it has joined. kInvalidArgument when another authority answers.
Result<TlsConnection> connect_to_join(Socket socket, const std::string& endpoint,
                                      const std::string& authority_fingerprint,
                                      const std::string& protocol, Nanoseconds timeout);

}  // namespace fastserve
