// Carries the bytes of a socket of this process through a stream to another one.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/clock.h"
#include "net/stream.h"

namespace fastserve {

/// Two ends of a local connection: one for a tunnel, one for who speaks through it.
struct LocalPair {
  Socket tunnel, speaker;
};
/// kResourceExhausted when descriptors are out.
Result<LocalPair> make_local_pair();

/// Sees what comes from the network before anyone else does.
class TunnelFilter {
 public:
  virtual ~TunnelFilter() = default;
  /// Takes all of `bytes`, and adds to `through` what may go on now: whatever it holds back is its
  /// own to bound. An Error ends the tunnel. Called on the tunnel's thread.
  virtual Status pass(std::span<const std::byte> bytes, std::vector<std::byte>& through) = 0;
};

/// Pumps bytes both ways between a stream and a local socket, until either ends.
///
/// When the local side ends, what it had sent goes out first; when the stream ends, what had come
/// from it is handed over first. Then both are closed.
///
/// Owns:     both ends; one thread. At most `buffer` bytes wait in each direction: who sends faster
///           than the other side reads is made to wait.
/// Threads:  close() and finished() from any.
/// Errors:   what `closed` is told: kUnavailable when the peer has ended the connection, the
/// network
///           broke it, or nothing at all came for `silence`; kCancelled when the local side ended
///           it; the filter's own Error; or what close() was given.
class Tunnel {
 public:
  struct Options {
    size_t buffer = 192 << 10;  ///< bytes
    Nanoseconds silence = std::chrono::seconds(5);
  };
  using Closed = std::function<void(const Error&)>;

  /// `filter` may be null. `closed` is called once, on the tunnel's thread, when both ends have
  /// been closed; it may call close() and finished(), but not destroy the tunnel.
  /// kResourceExhausted when descriptors or threads are out: then nothing is called.
  static Result<std::unique_ptr<Tunnel>> start(std::unique_ptr<Stream> stream, Socket local,
                                               std::unique_ptr<TunnelFilter> filter,
                                               Options options, Closed closed);
  /// Closes with kCancelled, and waits for `closed` to return.
  virtual ~Tunnel() = default;
  /// Ends the tunnel now: what waits in it is lost. Only the first reason counts.
  virtual void close(Error why) = 0;
  /// Nothing will be called any more, and the destructor does not wait.
  virtual bool finished() const = 0;
};

}  // namespace fastserve
