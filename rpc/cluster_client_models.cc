// Calls about models: what is stored, what becomes of it, where it is served.
#include "rpc/cluster_progress.h"
#include "rpc/connected_cluster_client.h"

namespace fastserve {

Result<Json> ConnectedClusterClient::models(const std::string& model) {
  FS_ASSIGN(const std::string text, ask(
                                        Patience::kWhileAlive,
                                        [model](auto& control) {
                                          auto request = control.modelsRequest();
                                          request.setModel(to_text(model));
                                          return request;
                                        },
                                        [](auto& reply) { return reply.getModels(); }));
  FS_ASSIGN(Json models, Json::parse(text, "the cluster's models"));
  if (!models.is_array())
    return Error{ErrorCode::kCorrupt, "is no list of models", "the coordinator's answer", ""};
  return models;
}

Result<uint64_t> ConnectedClusterClient::change_model(ModelChange change, const std::string& model,
                                                      const std::string& to) {
  return loop_.call<uint64_t>(Patience::kWhileAlive, [change, model, to](State& state) {
    auto request = control(state).changeModelRequest();
    request.setChange(write_model_change(change));
    request.setModel(to_text(model));
    request.setTo(to_text(to));
    return request.send().then([](auto&& reply) -> Result<uint64_t> {
      if (reply.hasError()) return read_error(reply.getError());
      return reply.getFreedBytes();
    });
  });
}

Status ConnectedClusterClient::verify_model(const std::string& model,
                                            const std::function<void(double)>& progress) {
  const auto reached = std::make_shared<Progress>();
  double said = 0;
  const auto meanwhile = [&] {
    const double now = reached->fraction;
    if (progress && now != said) progress(said = now);
  };
  return act(
      [model, reached](auto& control) {
        auto request = control.verifyModelRequest();
        request.setModel(to_text(model));
        request.setProgress(kj::heap<ProgressSinkServer>(reached));
        return request;
      },
      meanwhile);
}

Result<std::string> ConnectedClusterClient::deploy(const Json& request) {
  return begin(request, [](auto& control) { return control.deployRequest(); });
}

Result<std::string> ConnectedClusterClient::compress(const Json& request) {
  return begin(request, [](auto& control) { return control.compressRequest(); });
}

}  // namespace fastserve
