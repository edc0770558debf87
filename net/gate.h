// The port of a cluster: who comes in, and to whom they are handed.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/log.h"
#include "net/socket.h"
#include "net/tls.h"

namespace fastserve {

/// Accepts connections, lets them prove who they are, and hands them to what they asked for.
///
/// A stranger costs little: nothing is done for a connection before it has sent the first message
/// of a TLS handshake whole; `threads` connections are in a handshake at a time, `most_waiting`
/// more wait for it, and any further one is closed at once. A handshake is cut after `timeout`, or
/// after a fifth of it while most threads are taken.
///
/// Owns:    its port and threads.
/// Threads: counters() from any. Handlers and `admitted` are called on the gate's threads, several
///          at a time: a handler that takes long hands its connection to a thread of its own.
class Gate {
 public:
  struct Protocol {
    std::string name;   ///< as ALPN says it
    bool open = false;  ///< also to peers without a certificate
    std::function<void(TlsConnection)> handler;
    /// Who may ask for it, by where the connection comes from; empty: anyone.
    std::function<bool(const Socket&)> offered_to = {};
  };
  /// Whether the holder of a valid certificate is let in: nodes that were removed are not.
  using Admitted = std::function<Status(const NodeClaim&)>;
  struct Options {
    int threads = 8;
    int most_waiting = 128;
    Nanoseconds timeout = std::chrono::seconds(10);
    Log log;  ///< who was refused and why, at most once a second
  };
  struct Counters {
    uint64_t accepted = 0;       ///< connections
    uint64_t handed_over = 0;    ///< ... that a handler got
    uint64_t turned_away = 0;    ///< ... that were one too many
    uint64_t failed = 0;         ///< ... that finished no handshake
    uint64_t not_admitted = 0;   ///< ... whose certificate is good, and who is not let in
    uint64_t accept_errors = 0;  ///< times the system had no descriptor for a connection
  };

  /// Takes a port that nobody listens at yet. kResourceExhausted when descriptors or threads are
  /// out.
  static Result<std::unique_ptr<Gate>> start(BoundPort port, TlsParty party,
                                             std::vector<Protocol> protocols, Admitted admitted,
                                             Options options);
  /// Closes the port and what is in a handshake; waits for handlers to return.
  virtual ~Gate() = default;

  virtual int port() const = 0;
  virtual const std::string& endpoint() const = 0;
  virtual Counters counters() const = 0;
  /// Another certificate for connections that are yet to come.
  virtual void renew(TlsParty party) = 0;
};

}  // namespace fastserve
