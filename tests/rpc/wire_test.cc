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
                                                              const char* script, int max_tokens,
                                                              int top_logprobs = -1) {
    auto request = service.generateRequest();
    request.initRequest().initPrompt().setText(script);
    request.getRequest().setMaxTokens(max_tokens);
    request.getRequest().initSampling().setTopLogprobs(top_logprobs);
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

TEST_CASE("a reader far behind gets what waited in messages that it can read") {
  const Served served;
  auto io = kj::setupAsyncIo();
  WireClient client(io, served.server->port());
  constexpr int kTokens = 100'000;  // over 6 MiB with their log-probabilities
  auto [generation, sink] = client.generate(io, "count", kTokens, 2);
  sink->until(16).wait(io.waitScope);
  served.service->wait_for_idle();
  sink->answering = true;
  auto last = sink->until(SIZE_MAX);
  for (auto& answer : sink->unanswered) answer->fulfill();
  last.wait(io.waitScope);
  size_t total = 0;
  for (const size_t count : sink->tokens) total += count;
  CHECK(total == kTokens);
  CHECK(sink->finished);
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

TEST_CASE("a client that answers no events is disconnected, though its request has ended") {
  RpcServerOptions options;
  options.idle_timeout = std::chrono::milliseconds(50);
  const Served served(options);
  auto io = kj::setupAsyncIo();
  WireClient client(io, served.server->port());
  auto [generation, sink] = client.generate(io, "count", 3);
  sink->until(1).wait(io.waitScope);
  served.service->wait_for_idle();
  client.rpc.onDisconnect().wait(io.waitScope);
  while (served.server->connections() > 0) std::this_thread::yield();
}

/// Serves one connection on this thread, until it closes, while `client` talks to the port on
/// another.
template <class Server, class Client>
void serve_one(kj::Own<Server> server, Client client) {
  auto io = kj::setupAsyncIo();
  auto address = io.provider->getNetwork().parseAddress("127.0.0.1", 0).wait(io.waitScope);
  auto receiver = address->listen();
  auto serving = receiver->accept().then([&](kj::Own<kj::AsyncIoStream> stream) {
    auto network = kj::heap<capnp::TwoPartyVatNetwork>(*stream, capnp::rpc::twoparty::Side::SERVER);
    auto rpc = kj::heap(capnp::makeRpcServer(*network, capnp::Capability::Client(kj::mv(server))));
    auto gone = network->onDisconnect();
    return gone.attach(kj::mv(rpc), kj::mv(network), kj::mv(stream));
  });
  std::thread thread(client, static_cast<int>(receiver->getPort()));
  serving.wait(io.waitScope);
  thread.join();
}

/// Takes a request and is silent about it. Answers health() that many times; the last time it ends
/// the request.
class QuietServer final : public wire::FastServe::Server {
 public:
  explicit QuietServer(int answers) : answers_(answers) {}
  kj::Promise<void> hello(HelloContext context) override {
    auto results = context.getResults();
    results.setOldestProtocol(wire::PROTOCOL);
    results.setProtocol(wire::PROTOCOL);
    return kj::READY_NOW;
  }
  kj::Promise<void> generate(GenerateContext context) override {
    sink_ = context.getParams().getSink();
    return kj::READY_NOW;
  }
  kj::Promise<void> health(HealthContext) override {
    if (answers_-- == 0) return kj::NEVER_DONE;
    if (answers_ > 0) return kj::READY_NOW;
    auto push = KJ_ASSERT_NONNULL(sink_).pushRequest();
    push.initEvent().setFinish(wire::FinishReason::EOS);
    return push.send().ignoreResult();
  }

 private:
  int answers_;
  kj::Maybe<wire::EventSink::Client> sink_;
};

TEST_CASE("a server that stands still during a request is noticed") {
  serve_one(kj::heap<QuietServer>(0), [](int port) {
    const auto client = RpcClient::connect("127.0.0.1", port, std::chrono::milliseconds(100));
    REQUIRE(client.ok());
    const Status ended = (*client)->generate(scripted("count"), [](GenerateEvent) {});
    REQUIRE_FALSE(ended.ok());
    CHECK(ended.error().code == ErrorCode::kDeadlineExceeded);
  });
}

TEST_CASE("a request that waits long for its turn is not given up while the server answers") {
  serve_one(kj::heap<QuietServer>(3), [](int port) {
    const auto client = RpcClient::connect("127.0.0.1", port, std::chrono::milliseconds(100));
    REQUIRE(client.ok());
    FinishReason finish = FinishReason::kNone;
    const Status ended =
        (*client)->generate(scripted("count"), [&](GenerateEvent event) { finish = event.finish; });
    CHECK(ended.ok());
    CHECK(finish == FinishReason::kEos);
  });
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
    std::optional<Error> error;
    serve_one(kj::heap<OtherVersion>(one.oldest, one.newest), [&](int port) {
      const auto connected = RpcClient::connect("127.0.0.1", port, std::chrono::seconds(60));
      if (!connected.ok()) error = connected.error();
    });
    REQUIRE(error.has_value() == (one.hint != nullptr));
    if (!error) continue;
    CHECK(error->code == ErrorCode::kUnsupported);
    CHECK(error->what.find("fastserve 9.9 speaks protocol") == 0);
    CHECK(error->hint == one.hint);
  }
}

}  // namespace
}  // namespace fastserve
