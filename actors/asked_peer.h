// Who waits for another node's answers. For remoting_broker.cc alone: CAF shows here.
#pragma once

#include <atomic>
#include <caf/all.hpp>
#include <caf/forwarding_actor_proxy.hpp>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace fastserve {

/// A node as long as there is a connection with it: its actors that are known here, and what they
/// have been asked.
///
/// Owns:    for each open question a weak reference to who asked. One whose time ran out for those
///          who asked stays until the connection ends.
/// Threads: any.
class AskedPeer {
 public:
  /// `question` of `asker` is about to go to the actor `whom`.
  void ask(caf::actor_id whom, const caf::strong_actor_ptr& asker, caf::message_id question);
  /// An answer for the actor `asker` has come, whoever gives it: the one who was asked may have
  /// handed the question on.
  void answered(caf::actor_id asker, caf::message_id answer);
  /// `whom` will not answer any more: who waits gets remote_link_unreachable.
  void end(caf::actor_id whom);

  size_t open_questions() const;

  std::atomic<size_t> actors{0};

 private:
  struct Question {
    caf::actor_id whom;
    caf::actor_addr asker;
    caf::message_id id;
  };
  mutable std::mutex mutex_;
  std::map<std::pair<caf::actor_id, uint64_t>, Question> open_;  // by who asked, and its number
};

/// Stands for an actor of another node. Who has asked it hears when it ends, or the connection:
/// CAF's own proxies let them wait.
class RemoteActor final : public caf::forwarding_actor_proxy {
 public:
  RemoteActor(caf::actor_config& config, caf::actor broker, std::shared_ptr<AskedPeer> peer)
      : forwarding_actor_proxy(config, std::move(broker)), peer_(std::move(peer)) {}
  void enqueue(caf::mailbox_element_ptr what, caf::execution_unit* unit) override;
  void kill_proxy(caf::execution_unit* unit, caf::error why) override;

 private:
  const std::shared_ptr<AskedPeer> peer_;
};

}  // namespace fastserve
