// Actors of other processes, over streams instead of ports. For actors/ and its wiring alone: CAF
// shows here.
#pragma once

#include <caf/all.hpp>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "base/clock.h"
#include "base/result.h"
#include "net/stream.h"

namespace fastserve {

/// Connects the actors of this process with those of others.
///
/// One side adopts a stream, the other joins by it and gets the actor that the first has published;
/// from then on both may send each other handles of their own actors. A handle of a third node,
/// with which the receiver has no connection of its own, arrives empty. Each pair of nodes has one
/// connection: a newer one replaces the older, whose actors end first, so that a node whose old
/// connection is half dead may come back.
///
/// When a connection ends, for whatever reason, actors that monitor or have asked an actor of the
/// other side are told (caf::exit_reason::remote_link_unreachable). A peer that says nothing, not
/// even CAF's heartbeat each second, is given up after 5 s.
///
/// Messages may be made of integers, bool, strings, atoms, an error, and the types that the
/// system's configuration names (add_message_type; names that begin with '@' are CAF's). Their
/// members must not be bare floats (actors/bits.h), nor vectors of bytes: CAF allocates what the
/// peer says before it looks. Use strings. A message is at most 8 MiB. A peer that breaks this is
/// cut off (net/basp_guard.h). CAF queues without bounds what is sent faster than it travels: count
/// credits.
///
/// Owns:    for each connection a thread and, in all, three descriptors.
/// Threads: any. `closed` is called once for each connection that adopt() or join() succeeded for,
///          on a thread of its own, after which no more is heard from there; it may call all but
///          the destructor. One system may hold one Remoting.
class Remoting {
 public:
  using Closed = std::function<void(const Error&)>;

  /// Sets what the actor system needs; to be called before the system is made.
  static void configure(caf::actor_system_config& config);
  /// `system` was configured so, and outlives this.
  explicit Remoting(caf::actor_system& system);
  /// Cuts every connection; `closed` has been called for each when this returns.
  ~Remoting();
  Remoting(const Remoting&) = delete;
  Remoting& operator=(const Remoting&) = delete;

  /// What those who are adopted from now on will talk to.
  Status publish(const caf::strong_actor_ptr& front, std::set<std::string> signatures);
  template <class Handle>
  Status publish(const Handle& front) {
    return publish(caf::actor_cast<caf::strong_actor_ptr>(front),
                   system().template message_types<Handle>());
  }

  /// Lets a peer join by this stream. Returns at once.
  Status adopt(std::unique_ptr<Stream> stream, Closed closed);

  /// The actor that the peer at the other end has published. It must understand `signatures` (none:
  /// anything will do). kDeadlineExceeded after `timeout`, kUnsupported when the peer's version
  /// does not understand them, kUnavailable when the connection ends or nothing is published.
  Result<caf::strong_actor_ptr> join(std::unique_ptr<Stream> stream,
                                     const std::set<std::string>& signatures, Nanoseconds timeout,
                                     Closed closed);
  template <class Handle>
  Result<Handle> join(std::unique_ptr<Stream> stream, Nanoseconds timeout, Closed closed) {
    FS_ASSIGN(const auto front, join(std::move(stream), system().template message_types<Handle>(),
                                     timeout, std::move(closed)));
    return caf::actor_cast<Handle>(front);
  }

 private:
  caf::actor_system& system() const;
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fastserve
