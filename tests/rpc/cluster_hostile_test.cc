// Clients of a cluster that send rubbish, flood, stall or are of another age; and TLS before it
// all.
#include <capnp/rpc-twoparty.h>
#include <kj/async-io.h>
#include <kj/io.h>
#include <sys/socket.h>

#include <future>

#include "cluster/tokens.h"
#include "cluster_fixture.h"
#include "net/identity.h"
#include "net/tls.h"
#include "rubbish.h"
#include "schema/cluster.capnp.h"

namespace fastserve {
namespace {

using namespace fastserve::testing;
using namespace std::chrono_literals;

void send_all(const Socket& socket, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0 && errno != EAGAIN) return;
    if (n > 0) bytes.remove_prefix(static_cast<size_t>(n));
  }
}

/// Reads until the other end closes the connection.
void wait_for_close(const Socket& socket) {
  char buffer[4096];
  while (true) {
    const ssize_t n = ::recv(socket.get(), buffer, sizeof buffer, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN)) return;
  }
}

/// A Cap'n Proto client below the client library.
struct WireClient {
  WireClient(kj::AsyncIoContext& io, Socket socket)
      : stream(io.lowLevelProvider->wrapSocketFd(kj::AutoCloseFd(socket.release()))),
        rpc(*stream),
        door(rpc.bootstrap().castAs<wire::Cluster>()) {}
  auto open(const char* token, uint16_t protocol = wire::CLUSTER_PROTOCOL) {
    auto request = door.openRequest();
    request.setProtocol(protocol);
    request.setToken(token);
    return request.send();
  }
  kj::Own<kj::AsyncIoStream> stream;
  capnp::TwoPartyClient rpc;
  wire::Cluster::Client door;
};

TEST_CASE("rubbish costs its own connection and nothing else") {
  ClusterServerOptions options;
  options.open_timeout = 100ms;
  const ServedCluster served(options);
  const auto client = served.connect();
  for (const std::string& bytes : rubbish()) {
    const Socket peer = served.raw();
    send_all(peer, bytes);
    wait_for_close(peer);
    REQUIRE(client->nodes().ok());
  }
}

TEST_CASE("a stranger that shows no token is closed; one that did may be silent for longer") {
  ClusterServerOptions options;
  options.open_timeout = 50ms;
  const ServedCluster served(options);
  const auto client = served.connect();
  wait_for_close(served.raw());
  auto io = kj::setupAsyncIo();
  WireClient guesser(io, served.raw());
  CHECK(guesser.open("guessed").wait(io.waitScope).hasError());
  guesser.rpc.onDisconnect().wait(io.waitScope);
  CHECK(client->nodes().ok());
}

TEST_CASE("a client that says nothing is closed in the end, and one that waits for a call is not") {
  ClusterServerOptions options;
  options.idle_timeout = 100ms;
  ServedCluster served(options);
  const auto quiet = served.connect();
  served.wait_for_connections(0);
  CHECK(quiet->nodes().error().code == ErrorCode::kUnavailable);

  served.control.close_gate();
  const auto waiting = served.connect();
  std::thread opener([&] {
    served.control.wait_for_calls(1);
    wait_for_close(served.raw());  // longer than a silence may be
    served.control.open_gate();
  });
  CHECK(waiting->train(Json::object({{"model", "poems"}})).ok());
  opener.join();
}

TEST_CASE("for one stranger too many the oldest goes, so that a client still comes in") {
  ClusterServerOptions options;
  options.max_strangers = 3;
  options.open_timeout = 1h;
  const ServedCluster served(options);
  std::vector<Socket> strangers;
  for (int i = 0; i < 10; i++) strangers.push_back(served.raw());
  wait_for_close(strangers[6]);
  CHECK(served.connect()->nodes().ok());
  wait_for_close(strangers[7]);
}

TEST_CASE("connections above the limit are turned away until one closes") {
  ClusterServerOptions options;
  options.max_connections = 2;
  const ServedCluster served(options);
  auto first = served.connect();
  const auto second = served.connect();
  const auto third = served.try_connect("admin");
  REQUIRE_FALSE(third.ok());
  CHECK(third.error().code == ErrorCode::kUnavailable);
  CHECK(third.error().hint.find("as many connections as it takes") != std::string::npos);
  first.reset();
  served.wait_for_connections(1);
  CHECK(served.connect()->nodes().ok());
}

TEST_CASE("a client that floods is refused what is too much, and slows nobody") {
  ServedCluster served;
  served.control.close_gate();
  auto io = kj::setupAsyncIo();
  WireClient flood(io, served.raw());
  auto opened = flood.open("admin").wait(io.waitScope);
  auto control = opened.getControl();
  size_t refused = 0;
  kj::Vector<kj::Promise<void>> answers;
  for (int i = 0; i < 200; i++) {
    auto train = control.trainRequest();
    train.setRequest(R"({"model":"poems"})");
    answers.add(train.send().then([&](auto&& reply) {
      refused +=
          reply.hasError() && reply.getError().getCode() == wire::Error::Code::RESOURCE_EXHAUSTED;
    }));
  }
  control.pingRequest().send().wait(io.waitScope);
  CHECK(served.connect("read")->nodes().ok());
  served.control.open_gate();
  kj::joinPromises(answers.releaseAsArray()).wait(io.waitScope);
  CHECK(refused == 184);
}

/// Answers no push, ever.
class DeafSink final : public wire::UpdateSink::Server {
 public:
  kj::Promise<void> push(PushContext) override {
    pushes++;
    return kj::NEVER_DONE;
  }
  int pushes = 0;
};

TEST_CASE("a client that answers no update gets no second one, and is closed in the end") {
  ClusterServerOptions options;
  options.idle_timeout = 200ms;
  options.most_updates_per_second = 1000;
  ServedCluster served(options);
  served.control.put(some_job("j1"));
  auto io = kj::setupAsyncIo();
  WireClient client(io, served.raw());
  auto control = client.open("read").wait(io.waitScope).getControl();
  auto sink = kj::heap<DeafSink>();
  DeafSink& heard = *sink;
  auto watch = control.watchRequest();
  watch.setUpdatesPerSecond(1000);
  watch.setSink(kj::mv(sink));
  const auto watching = watch.send().wait(io.waitScope).getWatching();
  client.rpc.onDisconnect().wait(io.waitScope);
  CHECK(heard.pushes == 1);
}

TEST_CASE("a connection has as many watches as it may, and each dropped one makes room") {
  ClusterServerOptions options;
  options.max_watches_per_connection = 2;
  ServedCluster served(options);
  auto io = kj::setupAsyncIo();
  WireClient client(io, served.raw());
  auto control = client.open("read").wait(io.waitScope).getControl();
  const auto ask = [&] {
    auto watch = control.watchRequest();
    watch.setSink(kj::heap<DeafSink>());
    return watch.send().wait(io.waitScope);
  };
  {
    const auto first = ask(), second = ask();
    CHECK(ask().getError().getCode() == wire::Error::Code::RESOURCE_EXHAUSTED);
  }
  while (ask().hasError()) {
  }
  auto none = control.watchRequest().send().wait(io.waitScope);
  CHECK(std::string(none.getError().getWhere().cStr()) == "sink");
}

TEST_CASE("a request that is no JSON object is refused with where to look") {
  ServedCluster served;
  auto io = kj::setupAsyncIo();
  WireClient client(io, served.raw());
  auto control = client.open("run").wait(io.waitScope).getControl();
  for (const char* text : {"", "[1]", "{\"a\":", "null"}) {
    auto train = control.trainRequest();
    train.setRequest(text);
    auto reply = train.send().wait(io.waitScope);
    REQUIRE(reply.hasError());
    CHECK(reply.getError().getCode() == wire::Error::Code::INVALID_ARGUMENT);
  }
  CHECK(served.control.calls().empty());
}

TEST_CASE("one connection has one attempt to show a token") {
  const ServedCluster served;
  auto io = kj::setupAsyncIo();
  WireClient client(io, served.raw());
  CHECK(client.open("guessed").wait(io.waitScope).hasError());
  CHECK(client.open("admin").wait(io.waitScope).hasError());
  CHECK(served.checks == 1);
}

// Other ages ------------------------------------------------------------------------------------

TEST_CASE("a client whose protocol the coordinator does not speak is told which side to update") {
  const ServedCluster served;
  auto io = kj::setupAsyncIo();
  WireClient newer(io, served.raw()), older(io, served.raw());
  auto too_new = newer.open("admin", wire::CLUSTER_PROTOCOL + 1).wait(io.waitScope);
  CHECK(too_new.getError().getCode() == wire::Error::Code::UNSUPPORTED);
  CHECK(std::string(too_new.getError().getHint().cStr()) == "update the coordinator");
  CHECK(too_new.getProtocol() == wire::CLUSTER_PROTOCOL);
  auto too_old = older.open("admin", 0).wait(io.waitScope);
  CHECK(std::string(too_old.getError().getHint().cStr()) == "update this client");
  CHECK(served.checks == 0);
}

/// A coordinator of another age, which has `ping` and no more.
class OtherAge final : public wire::Cluster::Server {
 public:
  OtherAge(uint16_t oldest, uint16_t newest) : oldest_(oldest), newest_(newest) {}
  kj::Promise<void> open(OpenContext context) override {
    struct Control final : wire::Control::Server {
      kj::Promise<void> ping(PingContext) override { return kj::READY_NOW; }
    };
    auto results = context.getResults();
    results.setProtocol(newest_);
    results.setOldestProtocol(oldest_);
    results.setServer("fastserve 9.9.9");
    results.setControl(kj::heap<Control>());
    return kj::READY_NOW;
  }

 private:
  const uint16_t oldest_, newest_;
};

/// What a client makes of it; `use` is run with the connected client.
template <class Use>
Status meet_other_age(uint16_t oldest, uint16_t newest, const Use& use) {
  auto [ours, theirs] = socket_pair();
  std::thread server([&, socket = std::move(theirs)]() mutable {
    auto io = kj::setupAsyncIo();
    capnp::TwoPartyServer rpc(kj::heap<OtherAge>(oldest, newest));
    auto stream = io.lowLevelProvider->wrapSocketFd(kj::AutoCloseFd(socket.release()));
    rpc.accept(*stream).wait(io.waitScope);
  });
  Status met;
  {
    auto client = ClusterClient::over(plain_stream(std::move(ours), "coordinator"), "admin");
    if (client.ok())
      use(**client);
    else
      met = client.error();
  }
  server.join();
  return met;
}

TEST_CASE("an older coordinator that lacks a call is one to update, and the rest goes on") {
  const Status met = meet_other_age(1, 1, [](ClusterClient& client) {
    CHECK(client.server() == "fastserve 9.9.9");
    const auto report = client.audit("j1");
    CHECK(report.error().code == ErrorCode::kUnsupported);
    CHECK(report.error().message() ==
          "coordinator: the coordinator lacks this call (update the coordinator to this client's "
          "version)");
    CHECK(client.watch({}, [](const ClusterUpdate&) { return true; }).error().code ==
          ErrorCode::kUnsupported);
    CHECK(client.train(Json::object({})).error().code == ErrorCode::kUnsupported);
  });
  CHECK(met.ok());
}

TEST_CASE("a coordinator that speaks newer protocols alone says to update the client") {
  const Status met = meet_other_age(7, 9, [](ClusterClient&) {});
  CHECK(met.error().code == ErrorCode::kUnsupported);
  CHECK(met.error().message() ==
        "coordinator: fastserve 9.9.9 speaks protocol 7 to 9, this client 1 (update this client)");
}

}  // namespace
}  // namespace fastserve
