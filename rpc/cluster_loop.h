// What runs on the thread of a ClusterServer.
#pragma once

#include <capnp/rpc-twoparty.h>
#include <kj/async-io.h>

#include <atomic>
#include <map>
#include <memory>

#include "rpc/cluster_pool.h"
#include "rpc/cluster_server.h"
#include "rpc/cluster_session.h"
#include "rpc/cluster_stream.h"
#include "rpc/cluster_watch.h"
#include "rpc/mailbox.h"
#include "rpc/read_budget.h"
#include "rpc/watched_stream.h"

namespace fastserve {

/// What a ClusterServer's parts share; outlives the loop.
struct ClusterService {
  ClusterControl& control;
  const ClusterServer::CheckToken check_token;
  const ClusterServerOptions options;
  const std::shared_ptr<Mailbox> mailbox = std::make_shared<Mailbox>();
  std::atomic<size_t> connections{0};
};

/// Serves connections, and hands what may block to the pool.
///
/// Owns:     the connections.
/// Threads:  the loop's; others reach it through the mailbox.
/// Promises: see ClusterServer.
class ClusterLoop final : private kj::TaskSet::ErrorHandler {
 public:
  ClusterLoop(ClusterService& service, CallPool& pool, kj::AsyncIoContext& io);
  KJ_DISALLOW_COPY(ClusterLoop);

  void run(kj::AsyncIoContext& io, kj::Promise<void> stop);
  void adopt(std::unique_ptr<Stream> stream);

  // For the calls.

  ClusterService& service() { return service_; }
  ClusterWatches& watches() { return watches_; }
  kj::Timer& timer() { return timer_; }
  /// Of a connection that makes one more call.
  Status admit(uint64_t connection) const;
  /// Runs `work` on the pool; the promise is kept when it has run, and broken (OVERLOADED) when too
  /// much is under way.
  kj::Promise<void> run_elsewhere(uint64_t connection, CallPool::Kind kind,
                                  std::function<void()> work);
  /// The connection's one attempt to be let in: false when it has had it.
  bool try_once(uint64_t connection);
  /// False when the connection has gone meanwhile: calls end a little later than it does.
  bool let_in(uint64_t connection);
  bool is_open(uint64_t connection) const { return connections_.contains(connection); }

 private:
  struct Connection {
    Connection(kj::Own<kj::AsyncIoStream> inner, kj::Timer& timer, ReadBudget& budget)
        : opened(timer.now()),
          stream(kj::mv(inner), timer, budget),
          network(stream, capnp::rpc::twoparty::Side::SERVER,
                  capnp::ReaderOptions{kMostMessageWords, /*nestingLimit=*/16}) {}

    kj::TimePoint opened;
    bool tried = false, let_in = false;
    size_t calls = 0;  // unfinished
    WatchedStream stream;
    capnp::TwoPartyVatNetwork network;
    kj::Maybe<capnp::RpcSystem<capnp::rpc::twoparty::VatId>> rpc;
    kj::Promise<void> disconnected = nullptr;
  };
  struct Running {
    uint64_t connection;
    kj::Own<kj::PromiseFulfiller<void>> fulfiller;
  };

  void taskFailed(kj::Exception&& exception) override;
  void close(uint64_t connection);
  void make_room();
  kj::Promise<void> watch_silence();
  bool silent_for_too_long(uint64_t id, Connection& connection) const;
  bool ask(CallPool::Kind kind, std::function<void()> work, std::function<void()> done);
  void finished(uint64_t call);

  ClusterService& service_;
  CallPool& pool_;
  kj::UnixEventPort& port_;
  kj::Timer& timer_;
  ReadBudget budget_;  // outlives the connections
  uint64_t next_key_ = 1;
  size_t refused_ = 0;  // connections above a limit since the last word about them
  std::map<uint64_t, Running> running_;
  ClusterWatches watches_;
  std::map<uint64_t, kj::Own<Connection>> connections_;
  kj::TaskSet tasks_;
};

/// The bootstrap capability of one connection: open() of schema/cluster.capnp.
capnp::Capability::Client make_cluster_door(ClusterLoop& loop, uint64_t connection);

}  // namespace fastserve
