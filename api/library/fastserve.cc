// The public face over api/node.h: Results become one exception type, foreign types stay behind.
#include "fastserve/fastserve.h"

#include <fmt/format.h>

#include <atomic>
#include <thread>

#include "api/answer.h"
#include "api/node.h"

namespace fastserve {
namespace {

[[noreturn]] void raise(const Error& error) {
  throw FastServeError(static_cast<int>(error.code), error.message());
}

template <class T>
T value_or_raise(Result<T> result) {
  if (!result.ok()) raise(result.error());
  return std::move(result).value();
}

/// Mirrors a host's atomic into a CancelFlag when a progress callback comes by.
class StopMirror {
 public:
  explicit StopMirror(const std::atomic<bool>* stop) : stop_(stop) {}
  void look() {
    if (stop_ != nullptr && stop_->load()) flag_.raise();
  }
  const CancelFlag& flag() const { return flag_; }

 private:
  const std::atomic<bool>* stop_;
  CancelFlag flag_;
};

Precision parse_precision(const std::string& name) {
  for (Precision p : {Precision::kFloat32, Precision::kBFloat16, Precision::kFloat16})
    if (name == precision_name(p)) return p;
  raise({ErrorCode::kInvalidArgument, "is not a precision", name, "fp32, bf16 or fp16"});
}

TrainRequest to_request(const std::string& model, const TrainOptions& o) {
  TrainRequest r;
  r.model = model;
  r.data = o.data_path;
  r.preset = o.preset;
  r.from = o.from;
  r.resume = o.resume;
  if (o.batch_size > 0) r.batch = o.batch_size;
  if (o.block > 0) r.block = o.block;
  if (o.microbatches > 0) r.microbatches = o.microbatches;
  if (o.accumulation > 1) r.accumulation = o.accumulation;
  if (o.patience > 0) r.patience = o.patience;
  if (o.steps > 0)
    r.steps = o.steps;
  else if (o.epochs > 0)
    r.epochs = o.epochs;
  if (o.learning_rate > 0) r.learning_rate = o.learning_rate;
  if (!o.precision.empty()) r.precision = parse_precision(o.precision);
  r.seed = o.seed;
  r.placement.trainers = o.trainers;
  return r;
}

GenerateRequest to_request(const std::string& prompt, const GenerateOptions& o) {
  GenerateRequest r;
  r.prompt = prompt;
  r.max_tokens = o.max_tokens;
  r.sampling.temperature = o.temperature;
  r.sampling.top_p = o.top_p;
  r.sampling.min_p = o.min_p;
  r.sampling.top_k = o.top_k;
  r.sampling.repetition_penalty = o.repetition_penalty;
  r.sampling.seed = o.seed;
  r.stop = o.stop;
  r.ignore_eos = o.ignore_eos;
  return r;
}

}  // namespace

class FastServe::State {
 public:
  State(std::string model, const SystemOptions& options) : model_(std::move(model)) {
    NodeOptions node;
    node.root = options.store_path;
    node.lanes = options.lanes;
    if (options.on_log)
      node.log = Log(
          [sink = options.on_log](LogLevel, std::string_view line) { sink(std::string(line)); });
    node_ = value_or_raise(Node::create(std::move(node)));
  }

  Node& node() { return *node_; }
  const std::string& model() const { return model_; }
  Deployment* deployment() { return deployment_.get(); }

  void deploy(const DeployOptions& o, bool listen) {
    port_ = 0;
    deployment_.reset();
    DeployRequest r;
    r.models = {model_};
    r.address = o.address;
    r.port = o.port;
    r.allow_remote = o.allow_remote;
    if (!o.weights.empty()) r.weights = value_or_raise(parse_weight_format(o.weights));
    r.context_tokens = o.context_tokens;
    r.max_queue = o.max_queue;
    deployment_ = value_or_raise(node_->deploy(r, listen));
    port_ = deployment_->port();
  }
  void stop() {
    port_ = 0;
    deployment_.reset();
  }
  int port() const { return port_; }

 private:
  std::string model_;
  std::unique_ptr<Node> node_;
  std::unique_ptr<Deployment> deployment_;
  std::atomic<int> port_{0};
};

FastServe::FastServe(std::string model, SystemOptions options)
    : state_(std::make_unique<State>(std::move(model), options)) {}

FastServe::~FastServe() = default;

TrainReport FastServe::train(const TrainOptions& options) {
  StopMirror stop(options.stop);
  stop.look();
  const auto progress = [&](const TrainUpdate& u) {
    stop.look();
    if (!options.on_progress) return;
    options.on_progress({u.step, u.steps, u.loss, u.validation_loss, u.learning_rate,
                         u.gradient_norm, u.tokens_per_second, u.eta_seconds});
  };
  const TrainResult r = value_or_raise(
      state_->node().train(to_request(state_->model(), options), progress, stop.flag()));
  return {r.model.text(),  r.job,
          r.steps,         r.tokens,
          r.train_loss,    r.validation_loss,
          r.seconds,       r.tokens_per_second,
          r.stopped_early, r.peak_bytes,
          r.weights_hash};
}

CompressReport FastServe::compress(const CompressOptions& options) {
  CompressRequest request;
  request.model = state_->model();
  request.to = options.to;
  request.data = options.data_path;
  request.spec.weights = value_or_raise(parse_weight_format(options.weights));
  request.spec.pruning = value_or_raise(parse_pruning_kind(options.prune));
  request.spec.sparsity = options.sparsity;
  request.spec.max_perplexity_increase = options.max_perplexity_increase;
  request.spec.max_perplexity = options.max_perplexity;
  request.spec.max_bytes = options.max_bytes;
  StopMirror stop(options.stop);
  const auto progress = [&](std::string_view stage, double fraction) {
    stop.look();
    if (options.on_progress) options.on_progress(std::string(stage), fraction);
  };
  const CompressResult r = value_or_raise(state_->node().compress(request, progress, stop.flag()));
  return {r.model.text(),           r.before.bytes,     r.after.bytes,
          r.before.perplexity,      r.after.perplexity, r.before.tokens_per_second,
          r.after.tokens_per_second};
}

void FastServe::deploy(const DeployOptions& options) { state_->deploy(options, true); }

int FastServe::port() const { return state_->port(); }

void FastServe::stop() { state_->stop(); }

Generation FastServe::generate(const std::string& prompt, const GenerateOptions& options) {
  if (state_->deployment() == nullptr) state_->deploy({}, false);
  const CancelFlag never;
  Answer a = value_or_raise(generate_and_wait(state_->deployment()->service(),
                                              to_request(prompt, options), options.on_text, never));
  Generation g{std::move(a.text), {}, finish_reason_name(a.finish), a.prompt_tokens};
  for (const GeneratedToken& token : a.tokens) g.tokens.push_back(token.token);
  return g;
}

std::string FastServe::import_model(const std::string& directory) {
  const CancelFlag never;
  return value_or_raise(state_->node().import_directory(directory, state_->model(), {}, never))
      .text();
}

void FastServe::export_model(const std::string& directory) {
  const ModelRef ref = value_or_raise(ModelRef::parse(state_->model()));
  const Status status = state_->node().export_directory(ref, directory, false, {}, CancelFlag());
  if (!status.ok()) raise(status.error());
}

const char* version() { return FASTSERVE_VERSION; }

}  // namespace fastserve
