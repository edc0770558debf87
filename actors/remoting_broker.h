// CAF's remoting, taught to use sockets that are given to it. For remoting.cc alone: CAF shows
// here.
#pragma once

#include <caf/all.hpp>
#include <caf/io/all.hpp>
#include <caf/io/network/default_multiplexer.hpp>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "actors/asked_peer.h"
#include "base/fd.h"
#include "base/result.h"

namespace fastserve {

/// CAF's middleman with a node id that no other system has.
///
/// CAF builds the id of network cards, the disk and the process id: two containers of one image, or
/// two cloned machines, may get the same, and then take each other for themselves.
class RemotingMiddleman final : public caf::io::middleman {
 public:
  static caf::actor_system::module* make(caf::actor_system& system, caf::detail::type_list<>) {
    return new RemotingMiddleman(system);
  }
  explicit RemotingMiddleman(caf::actor_system& system) : middleman(system), loop_(&system) {}
  void init(caf::actor_system_config& config) override;
  caf::io::network::multiplexer& backend() override { return loop_; }
  caf::io::network::default_multiplexer& loop() { return loop_; }

 private:
  caf::io::network::default_multiplexer loop_;
};

/// The actor that speaks BASP with other nodes, beside CAF's own, which is left without work.
///
/// Threads: all but make_scribe() on the thread of the middleman's loop.
class RemotingBroker final : public caf::io::basp_broker {
 public:
  using Found = std::function<void(caf::strong_actor_ptr, std::set<std::string>)>;
  static constexpr size_t kMostActors = 10'000;    ///< of one node, that are known here
  static constexpr size_t kMostQueued = 64 << 20;  ///< bytes that wait for one node

  explicit RemotingBroker(caf::actor_config& config) : basp_broker(config) {}

  /// One end of a connection; `number` names it and is never used again, as descriptors are. When
  /// the peer exceeds one of the limits above, `exceeds` is called, once.
  static caf::io::scribe_ptr make_scribe(RemotingMiddleman& middleman, Fd socket, int64_t number,
                                         std::function<void(const Error&)> exceeds);

  void publish(const caf::strong_actor_ptr& front, std::set<std::string> signatures);
  /// Waits for a caller's handshake.
  void answer(caf::io::scribe_ptr scribe);
  /// Speaks first. `found` gets the actor that the peer has published, if it has (else null), once
  /// there is a connection; it is dropped when there never is.
  void call(caf::io::scribe_ptr scribe, Found found);
  /// Forgets a connection and whoever was reached by it: who monitors or has asked them is told.
  void drop(int64_t number);
  /// What is about to be read by this connection, if it is an answer, has come.
  void note_answer(caf::io::connection_handle handle);

  // What CAF asks of a broker.
  caf::strong_actor_ptr make_proxy(caf::node_id node, caf::actor_id actor) override;
  void finalize_handshake(const caf::node_id& node, caf::actor_id actor,
                          std::set<std::string>& signatures) override;
  void purge_state(const caf::node_id& node) override;
  // CAF would look for an actor there that spawns others by name: nobody here wants that.
  void learned_new_node_directly(const caf::node_id&, bool) override {}
  void learned_new_node_indirectly(const caf::node_id&) override {}
  const char* name() const override { return "remoting-broker"; }
  bool cleanup(caf::error&& reason, caf::execution_unit* host) override;

 private:
  void add(caf::io::scribe_ptr scribe);

  std::map<int64_t, Found> calling_;  // by connection
  std::map<caf::node_id, std::shared_ptr<AskedPeer>> peers_;
};

}  // namespace fastserve
