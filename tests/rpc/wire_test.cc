// The port as another Cap'n Proto implementation meets it: below the client library.
#include <capnp/rpc-twoparty.h>
#include <kj/async-io.h>

#include <optional>
#include <thread>

#include "fixture.h"
#include "schema/fastserve.capnp.h"

namespace fastserve {
namespace {

using namespace fastserve::testing;

/// Keeps every push and answers none before it is told to.
class StubbornSink final : public wire::EventSink::Server {
 public:
  kj::Promise<void> push(PushContext context) override {
    const auto event = context.getParams().getEvent();
    tokens.push_back(event.getTokens().size());
    finished = event.getFinish() != wire::FinishReason::NONE;
    if (wanted.get() != nullptr && (finished || tokens.size() >= wait_for)) wanted->fulfill();
    if (answering) return kj::READY_NOW;
    auto answer = kj::newPromiseAndFulfiller<void>();
    unanswered.push_back(kj::mv(answer.fulfiller));
    return kj::mv(answer.promise);
  }
  kj::Promise<void> until(size_t pushes) {
    if (finished || tokens.size() >= pushes) return kj::READY_NOW;
    auto paf = kj::newPromiseAndFulfiller<void>();
    wanted = kj::mv(paf.fulfiller);
    wait_for = pushes;
    return kj::mv(paf.promise);
  }
  std::vector<size_t> tokens;  // in each push
  bool finished = false, answering = false;
  std::vector<kj::Own<kj::PromiseFulfiller<void>>> unanswered;
  kj::Own<kj::PromiseFulfiller<void>> wanted;
  size_t wait_for = 0;
};

struct WireClient {
  WireClient(kj::AsyncIoContext& io, int port)
      : stream(io.provider->getNetwork()
                   .parseAddress("127.0.0.1", static_cast<unsigned>(port))
                   .wait(io.waitScope)
                   ->connect()
                   .wait(io.waitScope)),
        rpc(*stream),
        service(rpc.bootstrap().castAs<wire::FastServe>()) {}

  /// The generation's handle, and the sink its events go to.
  std::pair<wire::Generation::Client, StubbornSink*> generate(kj::AsyncIoContext& io,
                                                              const char* script, int max_tokens) {
    auto request = service.generateRequest();
    request.initRequest().initPrompt().setText(script);
    request.getRequest().setMaxTokens(max_tokens);
    auto sink = kj::heap<StubbornSink>();
    StubbornSink* kept = sink.get();
    request.setSink(kj::mv(sink));
    return {request.send().wait(io.waitScope).getGeneration(), kept};
  }

  kj::Own<kj::AsyncIoStream> stream;
  capnp::TwoPartyClient rpc;
  wire::FastServe::Client service;
};

TEST_CASE("sixteen messages go unanswered, the rest waits and is merged") {
  const Served served;
  auto io = kj::setupAsyncIo();
  WireClient client(io, served.server->port());
  auto [generation, sink] = client.generate(io, "count", 1000);
  sink->until(16).wait(io.waitScope);
  served.service->wait_for_idle();
  client.service.healthRequest().send().wait(io.waitScope);  // behind everything sent so far
  CHECK(sink->tokens.size() == 16);
  CHECK_FALSE(sink->finished);
  sink->answering = true;
  auto next = sink->until(SIZE_MAX);
  for (auto& answer : sink->unanswered) answer->fulfill();
  next.wait(io.waitScope);
  size_t total = 0;
  for (const size_t count : sink->tokens) total += count;
  CHECK(total == 1000);
  // What the port had heard of by then in one message, the rest in another.
  CHECK(sink->tokens.size() <= 18);
}

TEST_CASE("a client that vanishes frees its work") {
  const Served served;
  {
    auto io = kj::setupAsyncIo();
    WireClient client(io, served.server->port());
    auto [first, sink] = client.generate(io, "endless", 0);
    auto [second, other] = client.generate(io, "endless", 0);
    sink->until(3).wait(io.waitScope);
  }
  served.service->wait_for_cancelled(2);
  served.service->wait_for_idle();
}

TEST_CASE("dropping a generation's handle cancels it, and its last event still comes") {
  const Served served;
  auto io = kj::setupAsyncIo();
  WireClient client(io, served.server->port());
  StubbornSink* sink = nullptr;
  {
    auto [generation, kept] = client.generate(io, "endless", 0);
    sink = kept;
    sink->answering = true;
    sink->until(3).wait(io.waitScope);
  }
  client.service.healthRequest().send().wait(io.waitScope);  // behind the handle's release
  served.service->wait_for_cancelled(1);
  sink->until(SIZE_MAX).wait(io.waitScope);
  CHECK(sink->finished);
}

TEST_CASE("a request without a sink is an error, not a crash") {
  const Served served;
  auto io = kj::setupAsyncIo();
  WireClient client(io, served.server->port());
  auto request = client.service.generateRequest();
  request.initRequest().initPrompt().setText("count");
  const auto reply = request.send().wait(io.waitScope);
  REQUIRE(reply.hasError());
  CHECK(reply.getError().getCode() == wire::Error::Code::INVALID_ARGUMENT);
}

/// A server from another time.
class OtherVersion final : public wire::FastServe::Server {
 public:
  OtherVersion(uint16_t oldest, uint16_t newest) : oldest_(oldest), newest_(newest) {}
  kj::Promise<void> hello(HelloContext context) override {
    auto results = context.getResults();
    results.setOldestProtocol(oldest_);
    results.setProtocol(newest_);
    results.setServer("fastserve 9.9");
    return kj::READY_NOW;
  }

 private:
  uint16_t oldest_, newest_;
};

TEST_CASE("a client tells which side to update when server and client do not fit") {
  struct Case {
    uint16_t oldest, newest;
    const char* hint;  // null: they fit
  };
  for (const Case one :
       {Case{2, 3, "update this client"}, Case{0, 0, "update the server"}, Case{1, 7, nullptr}}) {
    auto io = kj::setupAsyncIo();
    auto address = io.provider->getNetwork().parseAddress("127.0.0.1", 0).wait(io.waitScope);
    auto receiver = address->listen();
    auto serving = receiver->accept().then([&](kj::Own<kj::AsyncIoStream> stream) {
      auto network =
          kj::heap<capnp::TwoPartyVatNetwork>(*stream, capnp::rpc::twoparty::Side::SERVER);
      auto rpc = kj::heap(capnp::makeRpcServer(
          *network, capnp::Capability::Client(kj::heap<OtherVersion>(one.oldest, one.newest))));
      auto gone = network->onDisconnect();
      return gone.attach(kj::mv(rpc), kj::mv(network), kj::mv(stream));
    });
    const int port = static_cast<int>(receiver->getPort());
    std::optional<Error> error;
    std::thread client([&] {
      const auto connected = RpcClient::connect("127.0.0.1", port, std::chrono::seconds(60));
      if (!connected.ok()) error = connected.error();
    });
    serving.wait(io.waitScope);
    client.join();
    REQUIRE(error.has_value() == (one.hint != nullptr));
    if (!error) continue;
    CHECK(error->code == ErrorCode::kUnsupported);
    CHECK(error->what.find("fastserve 9.9 speaks protocol") == 0);
    CHECK(error->hint == one.hint);
  }
}

}  // namespace
}  // namespace fastserve
