// The calls of schema/fastserve.capnp, each a few lines over GenerateService.
#include "rpc/server_loop.h"

namespace fastserve {
namespace {

constexpr uint16_t kProtocol = wire::PROTOCOL;
constexpr uint16_t kOldestProtocol = 1;
constexpr const char* kServerName = "fastserve " FASTSERVE_VERSION;

/// Of an answer that is more than Cap'n Proto would send.
Status check_answer(uint64_t bytes, const char* where) {
  constexpr uint64_t kAround = 4096;
  if (bytes + kAround <= kMostMessageWords * sizeof(capnp::word)) return {};
  return Error{ErrorCode::kInvalidArgument, "what it makes is more than the 4 MiB of one message",
               where, "send less at once"};
}

class GenerationServer final : public wire::Generation::Server {
 public:
  GenerationServer(ServerLoop& loop, uint64_t stream) : loop_(loop), stream_(stream) {}
  ~GenerationServer() { loop_.cancel(stream_); }
  kj::Promise<void> cancel(CancelContext) override {
    loop_.cancel(stream_);
    return kj::READY_NOW;
  }

 private:
  ServerLoop& loop_;
  const uint64_t stream_;
};

class FastServeServer final : public wire::FastServe::Server {
 public:
  FastServeServer(ServerLoop& loop, uint64_t connection) : loop_(loop), connection_(connection) {}

  kj::Promise<void> hello(HelloContext context) override {
    loop_.greet(connection_);
    auto results = context.getResults();
    results.setProtocol(kProtocol);
    results.setOldestProtocol(kOldestProtocol);
    results.setServer(kServerName);
    return kj::READY_NOW;
  }

  kj::Promise<void> listModels(ListModelsContext context) override {
    loop_.greet(connection_);
    const auto models = loop_.service().models();
    auto list = context.getResults().initModels(static_cast<unsigned>(models.size()));
    for (unsigned i = 0; i < models.size(); i++) write_model(list[i], models[i]);
    return kj::READY_NOW;
  }

  kj::Promise<void> health(HealthContext context) override {
    loop_.greet(connection_);
    write_health(context.getResults().initHealth(), loop_.service().health());
    return kj::READY_NOW;
  }

  kj::Promise<void> generate(GenerateContext context) override {
    loop_.greet(connection_);
    const auto params = context.getParams();
    auto results = context.getResults();
    if (!params.hasSink()) {
      write_error(results.initError(), {ErrorCode::kInvalidArgument, "is missing", "sink",
                                        "pass an EventSink to receive the tokens"});
      return kj::READY_NOW;
    }
    const auto started =
        loop_.start(connection_, read_request(params.getRequest()), params.getSink());
    if (!started.ok()) {
      write_error(results.initError(), started.error());
      return kj::READY_NOW;
    }
    results.setRequestId(started->request.value);
    results.setGeneration(kj::heap<GenerationServer>(loop_, started->key));
    return kj::READY_NOW;
  }

  kj::Promise<void> tokenise(TokeniseContext context) override {
    loop_.greet(connection_);
    const auto params = context.getParams();
    const auto tokens = loop_.service().tokenise(
        to_string(params.getModel()), to_string(params.getText()), params.getAddSpecialTokens());
    auto results = context.getResults();
    if (!tokens.ok()) {
      write_error(results.initError(), tokens.error());
      return kj::READY_NOW;
    }
    if (const Status fits = check_answer(tokens->size() * sizeof(int32_t), "text"); !fits.ok()) {
      write_error(results.initError(), fits.error());
      return kj::READY_NOW;
    }
    auto list = results.initTokens(static_cast<unsigned>(tokens->size()));
    for (unsigned i = 0; i < tokens->size(); i++) list.set(i, (*tokens)[i]);
    return kj::READY_NOW;
  }

  kj::Promise<void> detokenise(DetokeniseContext context) override {
    loop_.greet(connection_);
    const auto params = context.getParams();
    std::vector<int32_t> tokens;
    for (const int32_t token : params.getTokens()) tokens.push_back(token);
    const auto text = loop_.service().detokenise(to_string(params.getModel()), tokens);
    const Status fits = text.ok() ? check_answer(text->size(), "tokens") : Status(text.error());
    if (fits.ok())
      context.getResults().setText(to_text(*text));
    else
      write_error(context.getResults().initError(), fits.error());
    return kj::READY_NOW;
  }

  kj::Promise<void> formatChat(FormatChatContext context) override {
    loop_.greet(connection_);
    const auto params = context.getParams();
    std::vector<std::pair<std::string, std::string>> messages;
    for (const auto message : params.getMessages())
      messages.emplace_back(to_string(message.getRole()), to_string(message.getContent()));
    const auto prompt = loop_.service().format_chat(to_string(params.getModel()), messages);
    auto results = context.getResults();
    const Status fits =
        prompt.ok() ? check_answer(prompt->text.size(), "messages") : Status(prompt.error());
    if (!fits.ok()) {
      write_error(results.initError(), fits.error());
      return kj::READY_NOW;
    }
    results.setPrompt(to_text(prompt->text));
    auto stop = results.initStop(static_cast<unsigned>(prompt->stop.size()));
    for (unsigned i = 0; i < prompt->stop.size(); i++) stop.set(i, to_text(prompt->stop[i]));
    return kj::READY_NOW;
  }

 private:
  ServerLoop& loop_;
  const uint64_t connection_;
};

}  // namespace

capnp::Capability::Client make_calls(ServerLoop& loop, uint64_t connection) {
  return kj::heap<FastServeServer>(loop, connection);
}

}  // namespace fastserve
