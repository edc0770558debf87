#include "rpc/server_loop.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace fastserve {
namespace {

kj::Duration to_kj(Nanoseconds time) { return time.count() * kj::NANOSECONDS; }

}  // namespace

kj::Promise<void> ServerLoop::accept() {
  return receiver_->accept().then(
      [this](kj::Own<kj::AsyncIoStream> stream) {
        take_in(kj::mv(stream));
        return accept();
      },
      [this](kj::Exception&& exception) {
        // Out of file descriptors, most likely: others may be closed by then.
        taskFailed(kj::mv(exception));
        return timer_.afterDelay(100 * kj::MILLISECONDS).then([this]() { return accept(); });
      });
}

/// One that is not added is closed.
void ServerLoop::take_in(kj::Own<kj::AsyncIoStream> stream) {
  if (farewell_ != nullptr) return;
  if (connections_.size() < options_.max_connections)
    add(kj::mv(stream));
  else
    refused_++;
}

void ServerLoop::add(kj::Own<kj::AsyncIoStream> stream) {
  const uint64_t id = next_key_++;
  auto connection = kj::heap<Connection>(kj::mv(stream), timer_, budget_);
  connection->rpc = capnp::makeRpcServer(connection->network, make_calls(*this, id));
  // Closed from the mailbox: not from inside the promise that belongs to it.
  const auto closed = [this, id]() { mailbox_->post([this, id] { close(id); }); };
  connection->disconnected =
      connection->network.onDisconnect()
          .then([closed]() { closed(); }, [closed](kj::Exception&&) { closed(); })
          .eagerlyEvaluate(nullptr);
  connections_.emplace(id, kj::mv(connection));
  connection_count_ = connections_.size();
}

void ServerLoop::close(uint64_t id) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  for (auto at = running_.begin(); at != running_.end();) {
    if (at->second.connection != id) {
      ++at;
      continue;
    }
    service_.cancel(at->second.request);
    at = running_.erase(at);
  }
  end_farewell_if_all_heard();
  connections_.erase(found);
  connection_count_ = connections_.size();
}

size_t ServerLoop::requests_of(uint64_t connection) const {
  size_t count = 0;
  for (const auto& [key, running] : running_) count += running.connection == connection;
  return count;
}

bool ServerLoop::silent_for_too_long(uint64_t id, Connection& connection) const {
  const kj::TimePoint now = timer_.now();
  KJ_IF_MAYBE (since, connection.stream.large_read_since()) {
    if (now - *since >= to_kj(options_.message_timeout)) return true;
  }
  if (!connection.greeted) return now - connection.opened >= to_kj(options_.hello_timeout);
  if (now - connection.stream.last_progress() < to_kj(options_.idle_timeout)) return false;
  return connection.stream.blocked() || !engine_owes(id);
}

/// A request of the connection waits for the engine, and not for its client to answer events.
bool ServerLoop::engine_owes(uint64_t connection) const {
  return std::any_of(running_.begin(), running_.end(), [&](const auto& entry) {
    return entry.second.connection == connection && !entry.second.stream->unanswered();
  });
}

/// Lets nobody in, and gives clients a moment for the last events of requests that have ended.
kj::Promise<void> ServerLoop::say_farewell() {
  std::erase_if(running_, [&](const auto& entry) {
    if (entry.second.stream->finished()) return false;
    service_.cancel(entry.second.request);
    return true;
  });
  auto heard = kj::newPromiseAndFulfiller<void>();
  farewell_ = kj::mv(heard.fulfiller);
  end_farewell_if_all_heard();
  return heard.promise.exclusiveJoin(timer_.afterDelay(to_kj(options_.farewell)));
}

void ServerLoop::end_farewell_if_all_heard() {
  KJ_IF_MAYBE (farewell, farewell_) {
    if (running_.empty()) (*farewell)->fulfill();
  }
}

kj::Promise<void> ServerLoop::watch_silence() {
  const Nanoseconds shortest =
      std::min({options_.hello_timeout, options_.idle_timeout, options_.message_timeout});
  const Nanoseconds often = std::max<Nanoseconds>(shortest / 4, std::chrono::milliseconds(1));
  return timer_.afterDelay(to_kj(often)).then([this]() {
    std::vector<uint64_t> silent;
    for (auto& [id, connection] : connections_)
      if (silent_for_too_long(id, *connection)) silent.push_back(id);
    for (const uint64_t id : silent) close(id);
    // In one line a round, whatever strangers do.
    if (!silent.empty())
      options_.log.info(fmt::format("rpc: closed {} silent connections", silent.size()));
    if (refused_ > 0)
      options_.log.warning(
          fmt::format("rpc: refused {} connections: {} are open, the most there may be",
                      std::exchange(refused_, 0), connections_.size()));
    return watch_silence();
  });
}

Result<ServerLoop::Started> ServerLoop::start(uint64_t connection, GenerateRequest request,
                                              wire::EventSink::Client sink) {
  if (requests_of(connection) >= options_.max_requests_per_connection)
    return Error{
        ErrorCode::kResourceExhausted,
        fmt::format("has {} unfinished requests already", options_.max_requests_per_connection),
        "this connection", "wait for one to finish, or open another connection"};
  const uint64_t key = next_key_++;
  // The mailbox outlives the loop in the engine's hands, closed by then.
  auto submitted = service_.submit(
      std::move(request), [this, key, mailbox = mailbox_](std::vector<GenerateEvent> events) {
        mailbox->post(
            [this, key, events = std::move(events)]() mutable { deliver(key, std::move(events)); });
      });
  if (!submitted.ok()) return std::move(submitted).error();
  const auto ended = [this, key]() {
    mailbox_->post([this, key] {
      // Not finished when its client took no more: then there is something to cancel.
      cancel(key);
      running_.erase(key);
      end_farewell_if_all_heard();
    });
  };
  running_.emplace(key,
                   Running{connection, *submitted, kj::heap<RequestStream>(kj::mv(sink), ended)});
  return Started{key, *submitted};
}

void ServerLoop::cancel(uint64_t key) {
  const auto found = running_.find(key);
  if (found != running_.end() && !found->second.stream->finished())
    service_.cancel(found->second.request);
}

void ServerLoop::deliver(uint64_t key, std::vector<GenerateEvent> events) {
  const auto found = running_.find(key);
  if (found == running_.end()) return;  // its client is gone
  for (GenerateEvent& event : events) found->second.stream->add(std::move(event));
  found->second.stream->send();
}

}  // namespace fastserve
