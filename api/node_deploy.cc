// Serving: stored models into memory, an engine for each, a port in front of them.
#include <fmt/format.h>

#include <algorithm>
#include <mutex>

#include "actors/serving_system.h"
#include "api/local_node.h"
#include "compress/compressor.h"
#include "model/huggingface.h"
#include "rpc/server.h"

namespace fastserve {
namespace {

constexpr int kBlockTokens = 16;

class LocalDeployment final : public Deployment {
 public:
  LocalDeployment(std::shared_ptr<ServingSystem> system, std::unique_ptr<RpcServer> server)
      : system_(std::move(system)), server_(std::move(server)) {}
  ~LocalDeployment() override { system_->stop(ServingSystem::Stop::kCancel); }
  int port() const override { return server_ ? server_->port() : 0; }
  GenerateService& service() override { return *system_; }
  void adopt(std::unique_ptr<Stream> stream) override {
    const std::lock_guard lock(mutex_);
    if (server_ == nullptr) server_ = RpcServer::without_port({}, system_);
    server_->adopt(std::move(stream));
  }
  void drain(Nanoseconds patience) override {
    system_->stop(ServingSystem::Stop::kDrain, patience);
  }

 private:
  std::shared_ptr<ServingSystem> system_;
  std::mutex mutex_;
  std::unique_ptr<RpcServer> server_;  // goes first, once clients have their last events
};

/// Tokens of KV cache a model gets when the request leaves it open: room for sixteen whole
/// contexts, within a gibibyte, and at least one context.
int choose_context_tokens(const ModelConfig& config, KvType kv) {
  const int64_t bytes_a_token = int64_t{2} * config.layers * config.kv_heads *
                                static_cast<int64_t>(kv_head_bytes(kv, config.head_dim));
  const int64_t affordable = (int64_t{1} << 30) / bytes_a_token;
  const int64_t wanted = std::min<int64_t>(int64_t{16} * config.max_positions, affordable);
  return static_cast<int>(std::max<int64_t>(wanted, config.max_positions));
}

Status check_numbers(const DeployRequest& request) {
  constexpr int kMostTokens = 1 << 30, kMostWaiting = 1 << 20;
  if (request.context_tokens < 0 || request.context_tokens > kMostTokens)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("{} is not from 0 to {}", request.context_tokens, kMostTokens),
                 "context-tokens", "0 chooses by the models' contexts and the memory"};
  if (request.max_queue < 0 || request.max_queue > kMostWaiting)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("{} is not from 0 to {}", request.max_queue, kMostWaiting),
                 "max-queue", "0 refuses what cannot run at once"};
  if (request.host_memory > 0 && !request.turns)
    return Error{ErrorCode::kInvalidArgument, "is for models that take turns", "host-memory",
                 "add --turns, or leave it out"};
  return {};
}

/// A bundle held as floats, quantised in memory when the request asks for a quantised format.
Result<ModelBundle> in_format(ModelBundle bundle, WeightFormat format) {
  if (!is_quantised(format)) return bundle;
  FS_ASSIGN(const auto formats, bundle_weight_formats(bundle));
  if (!formats.empty()) return bundle;
  CompressSpec spec;
  spec.weights = format;
  return Compressor(std::move(bundle), {}).compress(spec);
}

}  // namespace

Result<std::unique_ptr<Deployment>> LocalNode::deploy(const DeployRequest& request, bool listen) {
  if (request.models.empty())
    return Error{ErrorCode::kInvalidArgument, "names no model", "deploy",
                 "fsctl models list shows those there are"};
  FS_TRY(check_numbers(request));
  RpcServerOptions options;
  options.address = request.address;
  options.port = request.port;
  options.allow_remote = request.allow_remote;
  options.log = options_.log;
  BoundPort port;  // before the models: loading them may take long
  if (listen) {
    FS_ASSIGN(port, RpcServer::bind(options));
  }
  ServingSystem::Config config;
  config.lanes = options_.lanes;
  FS_ASSIGN(const ChosenDevice chosen, device());
  FS_TRY(chosen.one_for("serving"));
  config.make_device = chosen.make;
  config.max_queue = request.max_queue;
  config.turns = request.turns;
  config.memory_limit = request.model_memory;
  config.host_memory = request.host_memory;
  config.clock = &clock_;
  config.log = options_.log;
  config.progress = request.progress;
  std::unique_ptr<Store> store;  // until weights are in memory, or known for their turn
  FS_ASSIGN(store, open_store());
  for (const std::string& text : request.models) {
    FS_ASSIGN(const ModelRef ref, ModelRef::parse(text));
    FS_ASSIGN(const StoredModel stored, store->open_model(ref));
    FS_ASSIGN(const ModelConfig model, bundle_config(stored.bundle));
    ServingSystem::Model served;
    served.name = stored.ref.name;
    served.version = std::to_string(stored.ref.version);
    FS_ASSIGN(served.bundle, in_format(stored.bundle, request.weights));
    if (!is_quantised(request.weights)) served.options.weights = request.weights;
    served.options.kv = request.kv;
    served.options.block_tokens = kBlockTokens;
    const int tokens = request.context_tokens > 0 ? request.context_tokens
                                                  : choose_context_tokens(model, request.kv);
    served.options.kv_blocks = (tokens + kBlockTokens - 1) / kBlockTokens;
    config.models.push_back(std::move(served));
  }
  FS_ASSIGN(auto system, ServingSystem::open(std::move(config)));
  std::unique_ptr<RpcServer> server;
  if (listen) {  // who comes while weights are on their way need not wait for all of them
    FS_ASSIGN(server, RpcServer::start(options, system, std::move(port)));
  }
  auto deployment = std::make_unique<LocalDeployment>(system, std::move(server));
  FS_TRY(system->wait_until_loaded());
  return std::unique_ptr<Deployment>(std::move(deployment));
}

}  // namespace fastserve
