// What runs on the thread of an RpcServer.
#pragma once

#include <capnp/rpc-twoparty.h>
#include <kj/async-io.h>

#include <atomic>
#include <map>
#include <memory>
#include <vector>

#include "net/socket.h"
#include "rpc/cluster_stream.h"
#include "rpc/mailbox.h"
#include "rpc/messages.h"
#include "rpc/request_stream.h"
#include "rpc/server.h"
#include "rpc/watched_stream.h"

namespace fastserve {

inline constexpr capnp::ReaderOptions kReaderOptions{kMostMessageWords, /*nestingLimit=*/16};

/// What the calls of one connection share.
struct Connection {
  Connection(kj::Own<kj::AsyncIoStream> inner, kj::Timer& timer, ReadBudget& budget)
      : opened(timer.now()),
        stream(kj::mv(inner), timer, budget),
        network(stream, capnp::rpc::twoparty::Side::SERVER, kReaderOptions) {}

  kj::TimePoint opened;
  bool greeted = false;  // it made a call
  WatchedStream stream;
  capnp::TwoPartyVatNetwork network;
  kj::Maybe<capnp::RpcSystem<capnp::rpc::twoparty::VatId>> rpc;
  kj::Promise<void> disconnected = nullptr;
};

/// Accepts connections, answers their calls, and carries events from engines to clients.
///
/// Owns:     connections and the streams of their requests.
/// Threads:  everything on the loop's; engines reach it through the mailbox.
/// Promises: see RpcServer.
class ServerLoop final : private kj::TaskSet::ErrorHandler {
 public:
  ServerLoop(const RpcServerOptions& options, GenerateService& service,
             std::shared_ptr<Mailbox> mailbox, std::atomic<size_t>& connection_count,
             kj::AsyncIoContext& io)
      : options_(options),
        service_(service),
        mailbox_(std::move(mailbox)),
        connection_count_(connection_count),
        port_(io.unixEventPort),
        timer_(io.provider->getTimer()),
        budget_(options.message_memory),
        tasks_(*this) {}
  ~ServerLoop() {
    while (!connections_.empty()) close(connections_.begin()->first);
  }
  KJ_DISALLOW_COPY(ServerLoop);

  /// `listening`: none when every connection is adopted.
  void run(kj::AsyncIoContext& io, Socket listening, kj::Promise<void> stop) {
    if (listening.get() >= 0) {
      receiver_ = io.lowLevelProvider->wrapListenSocketFd(
          kj::AutoCloseFd(listening.release()), kj::LowLevelAsyncIoProvider::ALREADY_CLOEXEC |
                                                    kj::LowLevelAsyncIoProvider::ALREADY_NONBLOCK);
      tasks_.add(accept());
    }
    tasks_.add(watch_silence());
    tasks_.add(mailbox_->run(io.unixEventPort));
    stop.then([this]() { return say_farewell(); }).wait(io.waitScope);
  }

  void adopt(std::unique_ptr<Stream> stream) {
    take_in(kj::heap<ClusterStream>(std::move(stream), port_));
  }

  /// Queues a request for the connection; its events go to the sink.
  struct Started {
    uint64_t key;
    RequestId request;
  };
  Result<Started> start(uint64_t connection, GenerateRequest request, wire::EventSink::Client sink);
  void cancel(uint64_t stream);

  GenerateService& service() { return service_; }
  void greet(uint64_t connection) { connections_.at(connection)->greeted = true; }

 private:
  void taskFailed(kj::Exception&& exception) override {
    options_.log.warning(std::string("rpc: ") + exception.getDescription().cStr());
  }

  kj::Promise<void> accept();
  void take_in(kj::Own<kj::AsyncIoStream> stream);
  void add(kj::Own<kj::AsyncIoStream> stream);
  void close(uint64_t connection);
  kj::Promise<void> watch_silence();
  kj::Promise<void> say_farewell();
  void end_farewell_if_all_heard();
  bool silent_for_too_long(uint64_t id, Connection& connection) const;
  size_t requests_of(uint64_t connection) const;
  bool engine_owes(uint64_t connection) const;
  void deliver(uint64_t key, std::vector<GenerateEvent> events);

  struct Running {
    uint64_t connection;
    RequestId request;
    kj::Own<RequestStream> stream;
  };

  const RpcServerOptions& options_;
  GenerateService& service_;
  const std::shared_ptr<Mailbox> mailbox_;
  std::atomic<size_t>& connection_count_;
  kj::UnixEventPort& port_;
  kj::Timer& timer_;
  ReadBudget budget_;  // outlives the connections
  kj::Own<kj::ConnectionReceiver> receiver_;
  uint64_t next_key_ = 1;
  size_t refused_ = 0;  // connections above the limit since the last word about them
  std::map<uint64_t, kj::Own<Connection>> connections_;
  std::map<uint64_t, Running> running_;
  kj::Maybe<kj::Own<kj::PromiseFulfiller<void>>> farewell_;  // set while the server goes
  kj::TaskSet tasks_;
};

/// The bootstrap capability of one connection: the calls of schema/fastserve.capnp.
capnp::Capability::Client make_calls(ServerLoop& loop, uint64_t connection);

}  // namespace fastserve
