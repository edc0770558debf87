#include "rpc/cluster_loop.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace fastserve {
namespace {

kj::Duration to_kj(Nanoseconds time) { return time.count() * kj::NANOSECONDS; }

}  // namespace

ClusterLoop::ClusterLoop(ClusterService& service, CallPool& pool, kj::AsyncIoContext& io)
    : service_(service),
      pool_(pool),
      port_(io.unixEventPort),
      timer_(io.provider->getTimer()),
      budget_(service.options.message_memory),
      watches_(service.control, service.check_token, service.options, timer_,
               [this](std::function<void()> work, std::function<void()> done) {
                 return ask(CallPool::Kind::kShort, std::move(work), std::move(done));
               }),
      tasks_(*this) {}

void ClusterLoop::taskFailed(kj::Exception&& exception) {
  service_.options.log.warning(std::string("cluster: ") + exception.getDescription().cStr());
}

void ClusterLoop::run(kj::AsyncIoContext& io, kj::Promise<void> stop) {
  tasks_.add(watch_silence());
  tasks_.add(service_.mailbox->run(port_));
  stop.wait(io.waitScope);
  while (!connections_.empty()) close(connections_.begin()->first);
  io.waitScope.poll();  // calls of closed connections end in a later turn
}

void ClusterLoop::adopt(std::unique_ptr<Stream> stream) {
  make_room();
  const auto inside = [](const auto& entry) { return entry.second->let_in; };
  if (static_cast<size_t>(std::count_if(connections_.begin(), connections_.end(), inside)) >=
      service_.options.max_connections) {
    refused_++;
    return;
  }
  const uint64_t id = next_key_++;
  auto connection =
      kj::heap<Connection>(kj::heap<ClusterStream>(std::move(stream), port_), timer_, budget_);
  connection->rpc = capnp::makeRpcServer(connection->network, make_cluster_door(*this, id));
  // Closed from the mailbox: not from inside the promise that belongs to it.
  const auto closed = [this, id]() { service_.mailbox->post([this, id] { close(id); }); };
  connection->disconnected =
      connection->network.onDisconnect()
          .then([closed]() { closed(); }, [closed](kj::Exception&&) { closed(); })
          .eagerlyEvaluate(nullptr);
  connections_.emplace(id, kj::mv(connection));
  service_.connections = connections_.size();
}

/// Lets the oldest stranger go when there are as many as there may be: keys grow with age.
void ClusterLoop::make_room() {
  const auto stranger = [](const auto& entry) { return !entry.second->let_in; };
  const auto count =
      static_cast<size_t>(std::count_if(connections_.begin(), connections_.end(), stranger));
  if (count < service_.options.max_strangers) return;
  refused_++;
  close(std::find_if(connections_.begin(), connections_.end(), stranger)->first);
}

void ClusterLoop::close(uint64_t id) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  watches_.drop_connection(id);
  connections_.erase(found);
  service_.connections = connections_.size();
}

bool ClusterLoop::silent_for_too_long(uint64_t id, Connection& connection) const {
  const ClusterServerOptions& options = service_.options;
  const kj::TimePoint now = timer_.now();
  KJ_IF_MAYBE (since, connection.stream.large_read_since()) {
    if (now - *since >= to_kj(options.message_timeout)) return true;
  }
  if (!connection.let_in) return now - connection.opened >= to_kj(options.open_timeout);
  if (now - connection.stream.last_progress() < to_kj(options.idle_timeout)) return false;
  if (connection.stream.blocked() || watches_.unanswered(id)) return true;
  return connection.calls == 0 && watches_.count(id) == 0;
}

kj::Promise<void> ClusterLoop::watch_silence() {
  const ClusterServerOptions& options = service_.options;
  const Nanoseconds shortest =
      std::min({options.open_timeout, options.idle_timeout, options.message_timeout});
  const Nanoseconds often = std::max<Nanoseconds>(shortest / 4, std::chrono::milliseconds(1));
  return timer_.afterDelay(to_kj(often)).then([this]() {
    std::vector<uint64_t> silent;
    for (auto& [id, connection] : connections_)
      if (silent_for_too_long(id, *connection)) silent.push_back(id);
    for (const uint64_t id : silent) close(id);
    // In one line a round, whatever strangers do.
    if (!silent.empty())
      service_.options.log.info(
          fmt::format("cluster: closed {} silent connections of clients", silent.size()));
    if (refused_ > 0)
      service_.options.log.warning(
          fmt::format("cluster: closed {} connections of clients, because {} are open",
                      std::exchange(refused_, 0), connections_.size()));
    return watch_silence();
  });
}

bool ClusterLoop::try_once(uint64_t connection) {
  const auto found = connections_.find(connection);
  return found != connections_.end() && !std::exchange(found->second->tried, true);
}

bool ClusterLoop::let_in(uint64_t connection) {
  const auto found = connections_.find(connection);
  if (found == connections_.end()) return false;
  found->second->let_in = true;
  return true;
}

Status ClusterLoop::admit(uint64_t connection) const {
  const size_t most = service_.options.max_calls_per_connection;
  const auto found = connections_.find(connection);
  if (found == connections_.end()) return Error{ErrorCode::kUnavailable, "is closed", "", ""};
  if (found->second->calls < most) return {};
  return Error{ErrorCode::kResourceExhausted, fmt::format("has {} unfinished calls already", most),
               "this connection", "wait for one to finish, or open another connection"};
}

kj::Promise<void> ClusterLoop::run_elsewhere(uint64_t connection, CallPool::Kind kind,
                                             std::function<void()> work) {
  const auto caller = connections_.find(connection);
  if (caller == connections_.end()) return KJ_EXCEPTION(DISCONNECTED, "the connection is closed");
  const uint64_t call = next_key_++;
  auto ran = kj::newPromiseAndFulfiller<void>();
  if (!ask(kind, std::move(work), [this, call] { finished(call); }))
    return KJ_EXCEPTION(OVERLOADED, "the coordinator has too much to do");
  running_.emplace(call, Running{connection, kj::mv(ran.fulfiller)});
  caller->second->calls++;
  return kj::mv(ran.promise);
}

bool ClusterLoop::ask(CallPool::Kind kind, std::function<void()> work, std::function<void()> done) {
  return pool_.post(kind,
                    [mailbox = service_.mailbox, work = std::move(work), done = std::move(done)] {
                      work();
                      mailbox->post(done);
                    });
}

void ClusterLoop::finished(uint64_t call) {
  const auto found = running_.find(call);
  Running running = std::move(found->second);
  running_.erase(found);
  const auto connection = connections_.find(running.connection);
  if (connection != connections_.end()) connection->second->calls--;
  running.fulfiller->fulfill();
}

}  // namespace fastserve
