// What a client of the port sees when everyone behaves.
#include <sys/socket.h>

#include <thread>

#include "fixture.h"

namespace fastserve {
namespace {

using namespace fastserve::testing;

TEST_CASE("tokens arrive in order, each once, and the last event tells the counts") {
  const Served served;
  const auto client = served.connect();
  Heard heard;
  const Status done = client->generate(scripted("count", 500),
                                       [&](GenerateEvent event) { heard.add(std::move(event)); });
  REQUIRE(done.ok());
  CHECK(heard.counts_to(500));
  CHECK(heard.last.finish == FinishReason::kLength);
  CHECK(heard.last.prompt_tokens == 7);
  CHECK(heard.last.generated_tokens == 500);
}

TEST_CASE("every field of a request reaches the service") {
  const Served served;
  const auto client = served.connect();
  GenerateRequest request;
  request.model = "tiny";
  request.prompt = "count";
  request.max_tokens = 2;
  request.sampling = {0.25, 40, 0.875, 0.0625, 1.125, 0xfedcba9876543210, 2};
  request.stop = {"\n\n", std::string("nul\0byte", 8), "Ende ü"};
  request.ignore_eos = true;
  request.timeout = std::chrono::milliseconds(2500);
  std::vector<GeneratedToken> tokens;
  REQUIRE(client
              ->generate(request,
                         [&](GenerateEvent event) {
                           tokens.insert(tokens.end(), event.tokens.begin(), event.tokens.end());
                         })
              .ok());
  const GenerateRequest& got = served.service->last_request;
  CHECK(got.model == request.model);
  CHECK(got.prompt == request.prompt);
  CHECK(got.max_tokens == 2);
  CHECK(got.sampling.temperature == 0.25);
  CHECK(got.sampling.top_k == 40);
  CHECK(got.sampling.top_p == 0.875);
  CHECK(got.sampling.min_p == 0.0625);
  CHECK(got.sampling.repetition_penalty == 1.125);
  CHECK(got.sampling.seed == 0xfedcba9876543210);
  CHECK(got.sampling.top_logprobs == 2);
  CHECK(got.stop == request.stop);
  CHECK(got.ignore_eos);
  CHECK(got.timeout == request.timeout);
  REQUIRE(tokens.size() == 2);
  CHECK(tokens[1].logprob == -0.5);
  REQUIRE(tokens[1].top.size() == 2);
  CHECK(tokens[1].top[1].token == 2);
  CHECK(tokens[1].top[1].logprob == -1.25);
}

TEST_CASE("a prompt may be tokens, and defaults stay defaults") {
  const Served served;
  const auto client = served.connect();
  GenerateRequest request;
  request.prompt_tokens = {5, -7, 2'000'000'000};
  const CancelFlag never;
  CancelFlag cancel;
  REQUIRE(client
              ->generate(
                  request, [&](GenerateEvent) { cancel.raise(); }, &cancel)
              .ok());
  const GenerateRequest& got = served.service->last_request;
  CHECK(got.prompt_tokens == request.prompt_tokens);
  CHECK(got.prompt.empty());
  CHECK(got.max_tokens == 128);
  CHECK(got.sampling.temperature == 1.0);
  CHECK(got.sampling.top_logprobs == -1);
  CHECK_FALSE(got.timeout.has_value());
}

TEST_CASE("a raised cancel flag ends a request, whose last event says so") {
  const Served served;
  const auto client = served.connect();
  CancelFlag cancel;
  Heard heard;
  const Status done = client->generate(
      scripted("endless"),
      [&](GenerateEvent event) {
        heard.add(std::move(event));
        cancel.raise();
      },
      &cancel);
  CHECK(done.ok());
  CHECK(heard.last.finish == FinishReason::kCancelled);
  served.service->wait_for_cancelled(1);
  CHECK(client->generate(scripted("count"), [](GenerateEvent) {}).ok());  // the connection lives on
}

TEST_CASE("a request past its deadline ends with its reason") {
  const Served served;
  Heard heard;
  CHECK(served.connect()
            ->generate(scripted("deadline"),
                       [&](GenerateEvent event) { heard.add(std::move(event)); })
            .ok());
  CHECK(heard.counts_to(3));
  CHECK(heard.last.finish == FinishReason::kDeadline);
}

TEST_CASE("errors keep their code, place and hint on the way") {
  const Served served;
  const auto client = served.connect();
  GenerateRequest request = scripted("refuse");
  request.model = "nobody";
  const Status refused =
      client->generate(request, [](GenerateEvent) { FAIL("no event expected"); });
  CHECK(refused.error().code == ErrorCode::kNotFound);
  CHECK(refused.error().message() == "nobody: is not deployed (deploy it first)");
  Heard heard;
  const Status failed =
      client->generate(scripted("fail"), [&](GenerateEvent event) { heard.add(std::move(event)); });
  CHECK(failed.error().code == ErrorCode::kCorrupt);
  CHECK(failed.error().where == "tiny@3");
  CHECK(heard.counts_to(1));
  CHECK(client->tokenise("absent", "x").error().code == ErrorCode::kNotFound);
}

TEST_CASE("models, health, tokens and chats come across") {
  const Served served;
  const auto client = served.connect();
  CHECK(client->server().starts_with("fastserve "));
  const auto models = client->models();
  REQUIRE(models.ok());
  REQUIRE(models->size() == 2);
  CHECK(models->front().name == "tiny");
  CHECK(models->front().version == "3");
  CHECK(models->front().weight_format == "int8-g32");
  CHECK(models->front().parameters == 12'000'000'000);
  CHECK(models->front().vocab_size == 32000);
  CHECK(models->front().on_device);
  CHECK(models->back().name == "away");
  CHECK_FALSE(models->back().on_device);
  const auto health = client->health();
  REQUIRE(health.ok());
  CHECK(health->ready);
  CHECK(health->queued == 2);
  CHECK(health->kv_blocks == 4);
  CHECK(health->uptime_seconds == 7.5);
  CHECK(health->device == "a script");
  const std::string text("a\0b\xff", 4);
  CHECK(*client->tokenise("tiny", text) == std::vector<int32_t>{-1, 'a', 0, 'b', 255});
  CHECK(client->tokenise("tiny", text, false)->size() == 4);
  const std::vector<int32_t> tokens = {'x', 0, 'y'};
  CHECK(*client->detokenise("tiny", tokens) == std::string("x\0y", 3));
  const std::vector<std::pair<std::string, std::string>> chat = {{"user", "hi"},
                                                                 {"assistant", "yo"}};
  const auto prompt = client->format_chat("tiny", chat);
  CHECK(prompt->text == "user:hi\nassistant:yo\n");
  CHECK(prompt->stop == std::vector<std::string>{"user:", "\n\n"});
}

TEST_CASE("a slow reader gets everything in a few large events, and holds up nobody") {
  const Served served;
  const auto slow = served.connect();
  Heard heard;
  const Status done = slow->generate(scripted("count", 20'000), [&](GenerateEvent event) {
    if (heard.events == 0) {
      // While this reader stands still, the engine finishes its request and another's.
      Heard other;
      CHECK(served.connect()
                ->generate(scripted("count", 50), [&](GenerateEvent e) { other.add(std::move(e)); })
                .ok());
      CHECK(other.counts_to(50));
      served.service->wait_for_idle();
    }
    heard.add(std::move(event));
  });
  CHECK(done.ok());
  CHECK(heard.counts_to(20'000));
  CHECK(heard.events < 1000);
}

TEST_CASE("fifty clients stream at once, some from one connection") {
  const Served served;
  const auto shared = served.connect();
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 50; i++)
    threads.emplace_back([&, i] {
      const int n = 20 + i;
      Heard heard;
      const auto own = i % 5 == 0 ? nullptr : served.connect();
      RpcClient& client = own ? *own : *shared;
      const Status done = client.generate(
          scripted("count", n), [&](GenerateEvent event) { heard.add(std::move(event)); });
      if (done.ok() && heard.counts_to(n)) good++;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(good == 50);
}

TEST_CASE("what no message can hold is refused before it is sent") {
  const Served served;
  const auto client = served.connect();
  const std::string book(size_t{5} << 20, 'x');
  const Status refused =
      client->generate(scripted(book), [](GenerateEvent) { FAIL("no event expected"); });
  CHECK(refused.error().code == ErrorCode::kInvalidArgument);
  CHECK(refused.error().where == "prompt");
  CHECK(refused.error().what.find("4 MiB") != std::string::npos);
  CHECK(client->tokenise("tiny", book).error().where == "text");
  CHECK(client->detokenise("tiny", std::vector<int32_t>(2'000'000)).error().where == "tokens");
  const std::vector<std::pair<std::string, std::string>> chat = {{"user", book}};
  CHECK(client->format_chat("tiny", chat).error().where == "messages");
  const auto many = client->tokenise("tiny", book.substr(0, size_t{3} << 20));
  CHECK(many.error().what.find("what it makes is more than the 4 MiB") == 0);
  CHECK(client->tokenise("tiny", book.substr(0, size_t{1} << 19)).ok());
  CHECK(client->health().ok());
}

TEST_CASE("a server that goes waits for clients to take the last events of what has ended") {
  RpcServerOptions options;
  options.farewell = std::chrono::seconds(60);
  Served served(options);
  const auto client = served.connect();
  std::thread closer;
  Heard heard;
  const Status done = client->generate(scripted("endless"), [&](GenerateEvent event) {
    if (heard.events == 0) {
      served.service->cancel(RequestId{1});
      served.service->wait_for_idle();
      closer = std::thread([&] { served.server.reset(); });
    }
    heard.add(std::move(event));
  });
  closer.join();
  CHECK(done.ok());
  CHECK(heard.last.finish == FinishReason::kCancelled);
  CHECK(client->health().error().code == ErrorCode::kUnavailable);
}

TEST_CASE("a server without a port serves the connections that it is given, beside each other") {
  const auto service = std::make_shared<ScriptedService>();
  auto server = RpcServer::without_port({}, service);
  CHECK(server->port() == 0);
  std::vector<std::unique_ptr<RpcClient>> clients;
  for (int i = 0; i < 2; i++) {
    int ends[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
    server->adopt(plain_stream(Socket(ends[0]), "client"));
    auto client = RpcClient::over(plain_stream(Socket(ends[1]), "the server"));
    if (!client.ok()) FAIL(client.error().message());
    clients.push_back(std::move(*client));
  }
  for (const auto& client : clients) {
    Heard heard;
    CHECK(client->generate(scripted("count"), [&](GenerateEvent e) { heard.add(std::move(e)); })
              .ok());
    CHECK(heard.counts_to(10));
  }
  server = nullptr;
  CHECK(clients[0]->health().error().where == "the server");
}

TEST_CASE("a server that goes away ends its requests and says so to its clients") {
  Served served;
  const auto client = served.connect();
  Heard heard;
  std::thread closer([&] {
    served.service->wait_for_submitted(1);
    served.server.reset();
  });
  const Status done = client->generate(scripted("endless"),
                                       [&](GenerateEvent event) { heard.add(std::move(event)); });
  closer.join();
  CHECK(done.error().code == ErrorCode::kUnavailable);
  CHECK(done.error().what == "the connection was lost");
  served.service->wait_for_cancelled(1);
  served.service->wait_for_idle();
  CHECK(client->health().error().code == ErrorCode::kUnavailable);
}

}  // namespace
}  // namespace fastserve
