#include "actors/remoting_broker.h"

#include <fmt/format.h>
#include <unistd.h>

#include <caf/io/network/scribe_impl.hpp>
#include <span>
#include <utility>

#include "base/entropy.h"

namespace fastserve {
namespace {

namespace io = caf::io;

constexpr uint16_t kPublished = 1;  // BASP names what is published by a port

io::connection_handle handle_of(int64_t number) {
  io::connection_handle handle;
  handle.set_id(number);
  return handle;
}

/// A connection over a socket of this process.
class LocalScribe final : public io::network::scribe_impl {
 public:
  LocalScribe(io::network::default_multiplexer& loop, int fd, int64_t number,
              std::function<void(const Error&)> exceeds)
      : scribe_impl(loop, fd), exceeds_(std::move(exceeds)) {
    // CAF names connections by descriptors, and what it still has to do when one has been closed it
    // would do to the next connection of that number.
    hdl_ = handle_of(number);
    msg().handle = hdl_;
  }
  bool consume(caf::execution_unit* unit, const void* bytes, size_t n) override {
    if (!detached()) static_cast<RemotingBroker*>(parent())->note_answer(hdl());
    return scribe_impl::consume(unit, bytes, n);
  }
  std::string addr() const override { return "tunnel"; }
  uint16_t port() const override { return 0; }
  void flush() override {
    scribe_impl::flush();
    if (wr_buf().size() <= RemotingBroker::kMostQueued) return;
    exceed(fmt::format("does not take what it is sent: {} MiB wait for it", wr_buf().size() >> 20));
  }
  void exceed(std::string what) {
    if (const auto tell = std::exchange(exceeds_, nullptr))
      tell({ErrorCode::kResourceExhausted, std::move(what), "",
            "see whether the node is overloaded"});
  }

 private:
  std::function<void(const Error&)> exceeds_;
};

}  // namespace

void RemotingMiddleman::init(caf::actor_system_config& config) {
  middleman::init(config);
  caf::node_id::default_data::host_id_type host;
  fill_with_entropy(std::as_writable_bytes(std::span(host)));
  // The system is under construction and has spawned nothing yet; there is no other way to tell it.
  const_cast<caf::node_id&>(system().node()) =
      caf::make_node_id(static_cast<uint32_t>(::getpid()), host);
}

io::scribe_ptr RemotingBroker::make_scribe(RemotingMiddleman& middleman, Fd socket, int64_t number,
                                           std::function<void(const Error&)> exceeds) {
  return caf::make_counted<LocalScribe>(middleman.loop(), socket.release(), number,
                                        std::move(exceeds));
}

void RemotingBroker::publish(const caf::strong_actor_ptr& front, std::set<std::string> signatures) {
  system().registry().put(front->id(), front);
  instance.add_published_actor(kPublished, front, std::move(signatures));
}

/// CAF ends brokers without what it does for other actors: their mailboxes stay open. What comes
/// later would lie there for good, and keep its senders: a system waits for each of its detached
/// actors to be gone.
bool RemotingBroker::cleanup(caf::error&& reason, caf::execution_unit* host) {
  close_all();
  return scheduled_actor::cleanup(std::move(reason), host);
}

void RemotingBroker::add(io::scribe_ptr scribe) {
  context(&system().middleman().backend());
  const io::connection_handle handle = scribe->hdl();
  add_scribe(std::move(scribe));
  set_context(handle);
  configure_read(handle, io::receive_policy::exactly(io::basp::header_size));
}

void RemotingBroker::answer(io::scribe_ptr scribe) {
  const io::connection_handle handle = scribe->hdl();
  add(std::move(scribe));
  instance.write_server_handshake(context(), get_buffer(handle), kPublished);
  flush(handle);
}

void RemotingBroker::call(io::scribe_ptr scribe, Found found) {
  const io::connection_handle handle = scribe->hdl();
  add(std::move(scribe));
  calling_[handle.id()] = std::move(found);
  instance.write_client_handshake(context(), get_buffer(handle));
  flush(handle);
}

void RemotingBroker::drop(int64_t number) {
  context(&system().middleman().backend());
  calling_.erase(number);
  connection_cleanup(handle_of(number), caf::sec::none);
  close(handle_of(number));
}

caf::strong_actor_ptr RemotingBroker::make_proxy(caf::node_id node, caf::actor_id actor) {
  // An actor of a third node, whom CAF would reach by way of the one that told of it.
  const auto connection = instance.tbl().lookup_direct(node);
  if (!connection || actor == caf::invalid_actor_id) return nullptr;
  auto& peer = peers_[node];
  if (peer == nullptr) peer = std::make_shared<AskedPeer>();
  if (peer->actors >= kMostActors) {
    if (auto scribe = by_id(*connection))
      static_cast<LocalScribe&>(*scribe).exceed(
          fmt::format("speaks in the name of more than {} actors", kMostActors));
    return nullptr;
  }
  caf::actor_config config;
  auto proxy = caf::make_actor<RemoteActor, caf::strong_actor_ptr>(actor, node, &system(), config,
                                                                   caf::actor(this), peer);
  ++peer->actors;
  // What is forgotten must not be found again; the proxy is kept until then, under its number.
  proxy->get()->attach_functor(
      [this, proxy, peer, self = caf::strong_actor_ptr(ctrl())](const caf::error& why) {
        --peer->actors;
        system().middleman().backend().post([this, proxy, self, why] {
          if (!getf(caf::abstract_actor::is_terminated_flag))
            proxies().erase(proxy->node(), proxy->id(), why);
        });
      });
  return proxy;
}

/// CAF reads the payload of a message in the call that brings it, so nothing comes between this and
/// the answer. One that CAF then cannot read is lost: its asker's time runs out.
void RemotingBroker::note_answer(io::connection_handle handle) {
  const auto at = ctx.find(handle);
  if (at == ctx.end() || at->second.cstate != io::basp::await_payload) return;
  const io::basp::header& header = at->second.hdr;
  const caf::message_id id(header.operation_data);
  if (header.operation != io::basp::message_type::direct_message || !id.is_response()) return;
  const auto peer = peers_.find(instance.tbl().lookup_direct(handle));
  if (peer != peers_.end()) peer->second->answered(header.dest_actor, id);
}

void RemotingBroker::purge_state(const caf::node_id& node) {
  basp_broker::purge_state(node);
  peers_.erase(node);
}

void RemotingBroker::finalize_handshake(const caf::node_id& node, caf::actor_id actor,
                                        std::set<std::string>& signatures) {
  this_context->id = node;
  const auto waiting = calling_.extract(this_context->hdl.id());
  if (waiting.empty()) return;
  caf::strong_actor_ptr found;
  if (actor != caf::invalid_actor_id) found = proxies().get_or_put(node, actor);
  waiting.mapped()(std::move(found), std::move(signatures));
}

}  // namespace fastserve
