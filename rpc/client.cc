#include "rpc/client.h"

#include <capnp/rpc-twoparty.h>
#include <fmt/format.h>
#include <kj/async-io.h>

#include <future>
#include <list>
#include <optional>
#include <thread>

#include "net/socket.h"
#include "rpc/calling.h"
#include "rpc/cluster_stream.h"
#include "rpc/event_loop.h"
#include "rpc/mailbox.h"
#include "rpc/messages.h"
#include "rpc/receiving.h"

namespace fastserve {
namespace {

constexpr const char* kClientName = "fastserve " FASTSERVE_VERSION;
constexpr auto kLookAtCancel = std::chrono::milliseconds(20);

Error no_answer(const std::string& endpoint, Nanoseconds timeout) {
  return {
      ErrorCode::kDeadlineExceeded,
      fmt::format("gave no answer within {:.3g} s", std::chrono::duration<double>(timeout).count()),
      endpoint, "see whether the server still runs, and is a fastserve server"};
}

template <class T>
kj::Promise<Result<T>> refusal(const Status& status) {
  return Result<T>(status.error());
}

/// What runs on the client's thread.
struct ClientLoop final : kj::TaskSet::ErrorHandler {
  explicit ClientLoop(kj::Own<kj::AsyncIoStream> connected)
      : stream(kj::mv(connected)),
        rpc(*stream),
        service(rpc.bootstrap().castAs<wire::FastServe>()),
        tasks(*this) {}
  ~ClientLoop() {
    for (const auto& one : receiving) one->drop();
  }
  void taskFailed(kj::Exception&&) override {}  // each call hands its failure to its caller

  kj::Own<kj::AsyncIoStream> stream;
  capnp::TwoPartyClient rpc;
  wire::FastServe::Client service;
  std::list<std::shared_ptr<Receiving>> receiving;
  kj::TaskSet tasks;
};

class ConnectedClient final : public RpcClient {
 public:
  ConnectedClient(std::unique_ptr<Stream> stream, Nanoseconds timeout)
      : endpoint_(stream->peer()), timeout_(timeout) {
    std::promise<void> started;
    const std::future<void> ready = started.get_future();
    thread_ =
        std::thread([this, stream = std::move(stream), started = std::move(started)]() mutable {
          run(std::move(stream), std::move(started));
        });
    ready.wait();
  }
  ~ConnectedClient() override {
    mailbox_->post([this] { stop_->fulfill(); });
    thread_.join();
  }

  Status hello();
  Result<std::vector<ServedModel>> models() override;
  Result<ServerHealth> health() override;
  Result<std::vector<int32_t>> tokenise(const std::string& model, const std::string& text,
                                        bool add_special_tokens) override;
  Result<std::string> detokenise(const std::string& model,
                                 std::span<const int32_t> tokens) override;
  Result<ChatPrompt> format_chat(
      const std::string& model,
      std::span<const std::pair<std::string, std::string>> role_and_content) override;
  Status generate(const GenerateRequest& request, const OnEvent& on_event,
                  const CancelFlag* cancel) override;
  const std::string& server() const override { return server_; }

 private:
  void run(std::unique_ptr<Stream> stream, std::promise<void> started);
  void start_generation(const GenerateRequest& request,
                        const std::shared_ptr<Receiving>& receiving);
  void probe(const std::shared_ptr<Receiving>& receiving);
  Status receive(Receiving& receiving, const std::shared_ptr<Receiving>& shared,
                 const OnEvent& on_event, const CancelFlag* cancel);

  /// `send` makes the call on the loop's thread and reads its answer: kj::Promise<Result<T>>.
  template <class T, class Send>
  Result<T> call(Send send) {
    auto answer = std::make_shared<Answer<T>>();
    mailbox_->post([this, answer, send = std::move(send)] {
      loop_->tasks.add(send(loop_->service)
                           .then([answer](Result<T> value) { answer->set(std::move(value)); },
                                 [this, answer](kj::Exception&& exception) {
                                   answer->set(from_exception(exception, endpoint_));
                                 }));
    });
    std::optional<Result<T>> value = answer->wait(timeout_);
    if (!value) return no_answer(endpoint_, timeout_);
    return std::move(*value);
  }

  const std::string endpoint_;
  const Nanoseconds timeout_;
  std::string server_;
  const std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
  ClientLoop* loop_ = nullptr;                  // the thread's, as is stop_
  kj::PromiseFulfiller<void>* stop_ = nullptr;  // both set before the constructor returns
  std::thread thread_;
};

void ConnectedClient::run(std::unique_ptr<Stream> stream, std::promise<void> started) {
  SilentLog silent;
  auto io = set_up_event_loop();
  auto stop = kj::newPromiseAndFulfiller<void>();
  ClientLoop loop(kj::heap<ClusterStream>(std::move(stream), io.unixEventPort));
  loop_ = &loop;
  stop_ = stop.fulfiller.get();
  started.set_value();
  const auto lost = [this, &loop]() {
    for (const auto& receiving : loop.receiving)
      receiving->fail(from_exception(KJ_EXCEPTION(DISCONNECTED, "lost"), endpoint_));
  };
  loop.tasks.add(
      loop.rpc.onDisconnect().then([lost]() { lost(); }, [lost](kj::Exception&&) { lost(); }));
  loop.tasks.add(mailbox_->run(io.unixEventPort));
  stop.promise.wait(io.waitScope);
  mailbox_->close();
}

Status ConnectedClient::hello() {
  struct Greeting {
    unsigned protocol, oldest;
    std::string server;
  };
  Result<Greeting> greeting = call<Greeting>([](wire::FastServe::Client& service) {
    auto hello = service.helloRequest();
    hello.setProtocol(wire::PROTOCOL);
    hello.setClient(kClientName);
    return hello.send().then([](auto&& reply) -> Result<Greeting> {
      return Greeting{reply.getProtocol(), reply.getOldestProtocol(), to_string(reply.getServer())};
    });
  });
  if (!greeting.ok()) {
    Error error = greeting.error();
    if (error.code == ErrorCode::kUnavailable) {
      error.what = "closed the connection";
      error.hint = "it may have as many connections as it takes, or be no fastserve server";
    }
    return error;
  }
  server_ = greeting->server;
  const unsigned own = wire::PROTOCOL;
  if (greeting->oldest <= own && own <= greeting->protocol) return {};
  const bool old_client = own < greeting->oldest;
  return Error{ErrorCode::kUnsupported,
               fmt::format("{} speaks protocol {} to {}, this client {}", server_, greeting->oldest,
                           greeting->protocol, own),
               endpoint_, old_client ? "update this client" : "update the server"};
}

Result<std::vector<ServedModel>> ConnectedClient::models() {
  using Models = std::vector<ServedModel>;
  return call<Models>([](wire::FastServe::Client& service) {
    return service.listModelsRequest().send().then([](auto&& reply) -> Result<Models> {
      Models models;
      for (const auto model : reply.getModels()) models.push_back(read_model(model));
      return models;
    });
  });
}

Result<ServerHealth> ConnectedClient::health() {
  return call<ServerHealth>([](wire::FastServe::Client& service) {
    return service.healthRequest().send().then(
        [](auto&& reply) -> Result<ServerHealth> { return read_health(reply.getHealth()); });
  });
}

Result<std::vector<int32_t>> ConnectedClient::tokenise(const std::string& model,
                                                       const std::string& text,
                                                       bool add_special_tokens) {
  using Tokens = std::vector<int32_t>;
  return call<Tokens>([model, text, add_special_tokens](wire::FastServe::Client& service) {
    auto tokenise = service.tokeniseRequest();
    tokenise.setModel(to_text(model));
    tokenise.setText(to_text(text));
    tokenise.setAddSpecialTokens(add_special_tokens);
    if (Status fits = check_size(tokenise, "text"); !fits.ok()) return refusal<Tokens>(fits);
    return tokenise.send().then([](auto&& reply) -> Result<Tokens> {
      if (reply.hasError()) return read_error(reply.getError());
      Tokens tokens;
      for (const int32_t token : reply.getTokens()) tokens.push_back(token);
      return tokens;
    });
  });
}

Result<std::string> ConnectedClient::detokenise(const std::string& model,
                                                std::span<const int32_t> tokens) {
  return call<std::string>([model, tokens = std::vector<int32_t>(tokens.begin(), tokens.end())](
                               wire::FastServe::Client& service) {
    auto detokenise = service.detokeniseRequest();
    detokenise.setModel(to_text(model));
    auto list = detokenise.initTokens(static_cast<unsigned>(tokens.size()));
    for (unsigned i = 0; i < tokens.size(); i++) list.set(i, tokens[i]);
    if (Status fits = check_size(detokenise, "tokens"); !fits.ok())
      return refusal<std::string>(fits);
    return detokenise.send().then([](auto&& reply) -> Result<std::string> {
      if (reply.hasError()) return read_error(reply.getError());
      return to_string(reply.getText());
    });
  });
}

Result<ChatPrompt> ConnectedClient::format_chat(
    const std::string& model,
    std::span<const std::pair<std::string, std::string>> role_and_content) {
  using Messages = std::vector<std::pair<std::string, std::string>>;
  return call<ChatPrompt>(
      [model, messages = Messages(role_and_content.begin(), role_and_content.end())](
          wire::FastServe::Client& service) {
        auto format = service.formatChatRequest();
        format.setModel(to_text(model));
        auto list = format.initMessages(static_cast<unsigned>(messages.size()));
        for (unsigned i = 0; i < messages.size(); i++) {
          list[i].setRole(to_text(messages[i].first));
          list[i].setContent(to_text(messages[i].second));
        }
        if (Status fits = check_size(format, "messages"); !fits.ok())
          return refusal<ChatPrompt>(fits);
        return format.send().then([](auto&& reply) -> Result<ChatPrompt> {
          if (reply.hasError()) return read_error(reply.getError());
          ChatPrompt prompt{to_string(reply.getPrompt()), {}};
          for (const auto stop : reply.getStop()) prompt.stop.push_back(to_string(stop));
          return prompt;
        });
      });
}

/// On the loop's thread.
void ConnectedClient::start_generation(const GenerateRequest& request,
                                       const std::shared_ptr<Receiving>& receiving) {
  loop_->receiving.push_back(receiving);
  auto generate = loop_->service.generateRequest();
  write_request(generate.initRequest(), request);
  if (Status fits = check_size(generate, "prompt"); !fits.ok())
    return receiving->fail(std::move(fits).error());
  generate.setSink(kj::heap<SinkServer>(receiving));
  loop_->tasks.add(generate.send().then(
      [receiving](auto&& reply) {
        if (reply.hasError()) {
          receiving->fail(read_error(reply.getError()));
          return;
        }
        receiving->generation = reply.getGeneration();
        if (receiving->cancelled) receiving->cancel();
        receiving->answered();
      },
      [this, receiving](kj::Exception&& exception) {
        receiving->fail(from_exception(exception, endpoint_));
      }));
}

Status ConnectedClient::generate(const GenerateRequest& request, const OnEvent& on_event,
                                 const CancelFlag* cancel) {
  const auto receiving = std::make_shared<Receiving>();
  mailbox_->post([this, request, receiving] { start_generation(request, receiving); });
  Status ended = receive(*receiving, receiving, on_event, cancel);
  // Its capabilities belong to the loop's thread: they are dropped there.
  mailbox_->post([this, receiving] {
    receiving->drop();
    loop_->receiving.remove(receiving);
  });
  return ended;
}

Status ConnectedClient::receive(Receiving& receiving, const std::shared_ptr<Receiving>& shared,
                                const OnEvent& on_event, const CancelFlag* cancel) {
  using Time = std::chrono::steady_clock;
  // The request's answer, a cancel's effect and a probe's answer come within the timeout. A quiet
  // request may be waiting its turn: then the server is asked whether it is there.
  Time::time_point heard = Time::now();
  bool answered = false, cancelling = false, probing = false;
  for (;;) {
    if (Time::now() - heard >= timeout_) {
      if (!answered || cancelling || probing) return no_answer(endpoint_, timeout_);
      probing = true;
      heard = Time::now();
      mailbox_->post([this, shared] { probe(shared); });
    }
    auto news = receiving.wait(kLookAtCancel);
    answered = answered || news.answered || news.event;
    if (news.failure) return std::move(*news.failure);
    if (news.event) {
      const bool last = news.event->finish != FinishReason::kNone;
      std::optional<Error> error = news.event->error;
      on_event(std::move(*news.event));
      if (last) return error ? Status(std::move(*error)) : Status();
    }
    if (news.alive && !cancelling) {
      heard = Time::now();
      probing = false;
    }
    if (news.release) mailbox_->post([shared] { shared->release(); });
    if (cancel != nullptr && cancel->raised() && !cancelling) {
      cancelling = true;
      heard = Time::now();
      mailbox_->post([shared] { shared->cancel(); });
    }
  }
}

/// On the loop's thread.
void ConnectedClient::probe(const std::shared_ptr<Receiving>& receiving) {
  loop_->tasks.add(loop_->service.healthRequest().send().then(
      [receiving](auto&&) { receiving->sign_of_life(); }));
}

}  // namespace

Result<std::unique_ptr<RpcClient>> RpcClient::connect(const std::string& host, int port,
                                                      Nanoseconds timeout) {
  FS_ASSIGN(Socket socket, connect_to(host, port, timeout));
  return over(plain_stream(std::move(socket), endpoint_text(host, port)), timeout);
}

Result<std::unique_ptr<RpcClient>> RpcClient::over(std::unique_ptr<Stream> stream,
                                                   Nanoseconds timeout) {
  auto client = std::make_unique<ConnectedClient>(std::move(stream), timeout);
  FS_TRY(client->hello());
  return std::unique_ptr<RpcClient>(std::move(client));
}

}  // namespace fastserve
