// The service of a cluster's coordinator for those who operate it.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"
#include "cluster/control.h"
#include "net/stream.h"

namespace fastserve {

struct ClusterServerOptions {
  size_t max_connections = 256;          ///< that have been let in; further ones are closed at once
  size_t max_strangers = 32;             ///< that have not yet; for one more the oldest is closed
  size_t max_calls_per_connection = 16;  ///< unfinished ones; further ones: kResourceExhausted
  size_t max_watches_per_connection = 8;
  Nanoseconds open_timeout = std::chrono::seconds(5);  ///< for showing a token
  /// Silence with nothing under way, or of a client that answers no updates.
  Nanoseconds idle_timeout = std::chrono::minutes(10);
  /// What half-received messages may hold over all connections; further large ones wait.
  uint64_t message_memory = uint64_t{32} << 20;
  Nanoseconds message_timeout = std::chrono::seconds(30);  ///< for sending a large message
  Nanoseconds recheck = std::chrono::seconds(30);          ///< how old the word on a token may be
  double most_updates_per_second = 10;                     ///< of one watch
  Nanoseconds repeat = std::chrono::seconds(5);  ///< an update that says nothing new comes again
  int threads = 4;                               ///< on which calls of ClusterControl may block
  Log log;
};

/// Serves schema/cluster.capnp on connections that were accepted elsewhere.
///
/// Owns:     the connections, a thread for them, and `threads` for the calls.
/// Threads:  any. `control` and `check_token` are called from several threads at once.
/// Promises: garbage, stalls and vanished clients cost their own connection and nothing else; a
///           client that reads no updates has at most one in memory, and none is made for it;
///           watches of many clients ask `control` together. Destruction closes all connections and
///           waits for calls that run in `control`, which must outlive it; a call whose client has
///           gone runs to its end.
class ClusterServer {
 public:
  /// What the token's holder may do; an Error says what is wrong with it. May block a little.
  using CheckToken = std::function<Result<AccessRole>(const std::string& token)>;

  static std::unique_ptr<ClusterServer> start(ClusterControl& control, CheckToken check_token,
                                              ClusterServerOptions options = {});
  virtual ~ClusterServer() = default;

  /// Serves a client on the stream: of net/tls.h, its handshake done, spoken to as
  /// kClusterClientProtocol. Never blocks.
  virtual void adopt(std::unique_ptr<Stream> stream) = 0;

  /// How many there are, strangers among them.
  virtual size_t connections() const = 0;
};

/// The application protocol (ALPN) of these connections; their clients show no certificate.
inline constexpr const char* kClusterClientProtocol = "fastserve-client/1";

}  // namespace fastserve
