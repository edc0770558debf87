#include "cli/generation.h"

#include <fmt/format.h>

#include <optional>

#include "base/endpoint.h"
#include "cli/cluster_models.h"
#include "rpc/client.h"

namespace fastserve {
namespace {

double seconds_since(const Clock& clock, Nanoseconds start) {
  return std::chrono::duration<double>(clock.now() - start).count();
}

class RemoteGenerator final : public Generator {
 public:
  RemoteGenerator(std::unique_ptr<RpcClient> client, std::string model, const CancelFlag& cancel)
      : client_(std::move(client)), model_(std::move(model)), cancel_(cancel) {}

  Result<Answer> generate(const GenerateRequest& request,
                          const std::function<void(const std::string&)>& on_text) override {
    const Nanoseconds start = clock_.now();
    GenerateRequest named = request;
    named.model = model_;
    Answer answer;
    std::optional<Error> failure;
    Status status = client_->generate(
        named,
        [&](GenerateEvent event) {
          if (!event.text.empty()) on_text(event.text);
          auto last = answer.absorb(std::move(event));
          if (!last.ok()) failure = last.error();
        },
        &cancel_);
    if (!status.ok()) return std::move(status).error();
    if (failure) return std::move(*failure);
    if (answer.finish == FinishReason::kCancelled && !cancel_.raised())
      return Error{ErrorCode::kUnavailable, "the server stopped before the answer was complete", "",
                   "try again later, or start a server with fsctl deploy"};
    answer.seconds = seconds_since(clock_, start);
    return answer;
  }
  Result<ChatPrompt> format_chat(
      const std::vector<std::pair<std::string, std::string>>& turns) override {
    return client_->format_chat(model_, turns);
  }

 private:
  SystemClock clock_;
  std::unique_ptr<RpcClient> client_;
  std::string model_;
  const CancelFlag& cancel_;
};

/// The model in this process, without a socket.
class LocalGenerator final : public Generator {
 public:
  LocalGenerator(std::unique_ptr<Node> node, std::unique_ptr<Deployment> deployment,
                 const CancelFlag& cancel)
      : node_(std::move(node)), deployment_(std::move(deployment)), cancel_(cancel) {}

  Result<Answer> generate(const GenerateRequest& request,
                          const std::function<void(const std::string&)>& on_text) override {
    const auto print = [&](const std::string& text) {
      on_text(text);
      return true;
    };
    return generate_and_wait(deployment_->service(), request, print, cancel_);
  }
  Result<ChatPrompt> format_chat(
      const std::vector<std::pair<std::string, std::string>>& turns) override {
    return deployment_->service().format_chat("", turns);
  }

 private:
  std::unique_ptr<Node> node_;
  std::unique_ptr<Deployment> deployment_;
  const CancelFlag& cancel_;
};

/// Through the coordinator, which knows where the model is served.
Result<std::unique_ptr<Generator>> open_cluster_generator(CommandLine& line,
                                                          const std::string& model) {
  if (model.empty())
    return Error{ErrorCode::kInvalidArgument, "needs a model", "generate",
                 "fsctl jobs list shows what is deployed"};
  TransferAsk ask;
  ask.want = TransferAsk::Want::kGenerate;
  ask.model = model;
  FS_ASSIGN(OpenedTransfer opened, open_cluster_transfer(line, ask));
  FS_ASSIGN(auto client, RpcClient::over(std::move(opened.stream), std::chrono::seconds(15)));
  // Whatever the deployment calls it, there is but one model behind this connection.
  return std::unique_ptr<Generator>(new RemoteGenerator(std::move(client), "", line.cancel));
}

}  // namespace

Result<std::unique_ptr<Generator>> open_generator(CommandLine& line, const std::string& model,
                                                  const std::string& connect,
                                                  const std::string& kv) {
  if (!kv.empty() && (!connect.empty() || !line.cluster.empty()))
    return Error{ErrorCode::kInvalidArgument, "is the choice of who deploys the model", "--kv",
                 "give --kv to fsctl deploy"};
  if (!connect.empty()) {
    FS_ASSIGN(const auto place, parse_endpoint(connect));
    FS_ASSIGN(auto client, RpcClient::connect(place.host, place.port, std::chrono::seconds(5)));
    return std::unique_ptr<Generator>(new RemoteGenerator(std::move(client), model, line.cancel));
  }
  if (!line.cluster.empty()) return open_cluster_generator(line, model);
  if (model.empty())
    return Error{ErrorCode::kInvalidArgument, "needs a model or --connect HOST:PORT", "generate",
                 "fsctl models list shows the models here"};
  FS_ASSIGN(auto node, line.node());
  DeployRequest request;
  request.models = {model};
  if (!kv.empty()) {
    FS_ASSIGN(request.kv, parse_kv_type(kv));
  }
  FS_ASSIGN(auto deployment, node->deploy(request, false));
  return std::unique_ptr<Generator>(
      new LocalGenerator(std::move(node), std::move(deployment), line.cancel));
}

}  // namespace fastserve
