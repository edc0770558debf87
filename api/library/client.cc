// The public client over rpc/: Results become one exception type.
#include "fastserve/client.h"

#include "api/library/convert.h"
#include "rpc/client.h"

namespace fastserve {

class Client::State {
 public:
  explicit State(std::unique_ptr<RpcClient> client) : client_(std::move(client)) {}
  RpcClient& client() { return *client_; }

  ChatPrompt format_chat(const std::vector<ChatMessage>& messages, const std::string& model) {
    std::vector<std::pair<std::string, std::string>> turns;
    for (const ChatMessage& m : messages) turns.emplace_back(m.role, m.content);
    return value_or_raise(client_->format_chat(model, turns));
  }

  Generation generate(const GenerateRequest& request, const GenerateOptions& options) {
    CancelFlag cancel(options.cancel);
    Answer answer;
    const Status done = client_->generate(
        request,
        [&](GenerateEvent event) {
          const bool wanted = event.text.empty() || cancel.raised() || !options.on_text ||
                              options.on_text(event.text);
          if (!wanted) cancel.raise();
          (void)answer.absorb(std::move(event));  // its error is the call's own
        },
        &cancel);
    if (!done.ok()) raise(done.error());
    return to_generation(std::move(answer), options.top_logprobs >= 0);
  }

 private:
  std::unique_ptr<RpcClient> client_;
};

Client::Client(const std::string& host, int port, double timeout_seconds) {
  const auto timeout = value_or_raise(timeout_from_seconds(timeout_seconds));
  if (!timeout)
    raise({ErrorCode::kInvalidArgument, "is 0", "timeout_seconds", "5 is the usual choice"});
  state_ = std::make_unique<State>(value_or_raise(RpcClient::connect(host, port, *timeout)));
}

Client::~Client() = default;
Client::Client(Client&& other) noexcept = default;
Client& Client::operator=(Client&& other) noexcept = default;

std::vector<DeployedModel> Client::models() {
  std::vector<DeployedModel> out;
  for (const ServedModel& m : value_or_raise(state_->client().models()))
    out.push_back({m.name, m.version, m.architecture, m.weight_format, m.parameters, m.weight_bytes,
                   m.context_length, m.vocab_size, m.on_device});
  return out;
}

DeploymentHealth Client::health() {
  const ServerHealth h = value_or_raise(state_->client().health());
  return {h.ready,
          h.running,
          h.queued,
          h.kv_blocks_free,
          h.kv_blocks,
          h.tokens_generated,
          h.requests_finished,
          h.uptime_seconds,
          h.device};
}

Generation Client::generate(const std::string& prompt, const GenerateOptions& options) {
  GenerateRequest request = to_request(options);
  request.prompt = prompt;
  return state_->generate(request, options);
}

Generation Client::generate(const std::vector<int32_t>& prompt, const GenerateOptions& options) {
  GenerateRequest request = to_request(options);
  request.prompt_tokens = prompt;
  return state_->generate(request, options);
}

std::vector<int32_t> Client::tokenise(const std::string& text, const std::string& model,
                                      bool add_special_tokens) {
  return value_or_raise(state_->client().tokenise(model, text, add_special_tokens));
}

std::string Client::detokenise(const std::vector<int32_t>& tokens, const std::string& model) {
  return value_or_raise(state_->client().detokenise(model, tokens));
}

Generation Client::chat(const std::vector<ChatMessage>& messages, const GenerateOptions& options) {
  ChatPrompt prompt = state_->format_chat(messages, options.model);
  GenerateRequest request = to_request(options);
  request.prompt = std::move(prompt.text);
  for (std::string& stop : prompt.stop) request.stop.push_back(std::move(stop));
  return state_->generate(request, options);
}

std::string Client::format_chat(const std::vector<ChatMessage>& messages,
                                const std::string& model) {
  return state_->format_chat(messages, model).text;
}

}  // namespace fastserve
