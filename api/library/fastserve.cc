// The public face over api/node.h: Results become one exception type, foreign types stay behind.
#include "fastserve/fastserve.h"

#include <fmt/format.h>

#include <atomic>
#include <exception>
#include <mutex>

#include "api/answer.h"
#include "api/library/convert.h"
#include "api/node.h"

namespace fastserve {
namespace {

Precision parse_precision(const std::string& name) {
  for (Precision p : {Precision::kFloat32, Precision::kBFloat16, Precision::kFloat16})
    if (name == precision_name(p)) return p;
  raise({ErrorCode::kInvalidArgument, "is not a precision", name, "fp32, bf16 or fp16"});
}

TrainRequest to_request(const std::string& model, const TrainOptions& o) {
  TrainRequest r;
  r.resume = o.resume;
  r.placement.trainers = o.trainers;
  if (!o.resume.empty()) return r;
  r.model = model;
  r.data = o.data_path;
  r.preset = o.preset;
  r.from = o.from;
  if (o.batch_size != 0) r.batch = o.batch_size;
  if (o.block != 0) r.block = o.block;
  if (o.microbatches != 0) r.microbatches = o.microbatches;
  if (o.accumulation != 1) r.accumulation = o.accumulation;
  if (o.patience != 0) r.patience = o.patience;
  if (o.steps != 0)
    r.steps = o.steps;
  else if (o.epochs != 0)
    r.epochs = o.epochs;
  if (o.learning_rate != 0) r.learning_rate = o.learning_rate;
  if (!o.precision.empty()) r.precision = parse_precision(o.precision);
  r.seed = o.seed;
  return r;
}

CompressRequest to_request(const std::string& model, const CompressOptions& o) {
  CompressRequest r;
  r.model = model;
  r.to = o.to;
  r.data = o.data_path;
  r.spec.weights = value_or_raise(parse_weight_format(o.weights));
  r.spec.pruning = value_or_raise(parse_pruning_kind(o.prune));
  r.spec.sparsity = o.sparsity;
  r.spec.max_perplexity_increase = o.max_perplexity_increase;
  r.spec.max_perplexity = o.max_perplexity;
  r.spec.max_bytes = o.max_bytes;
  return r;
}

/// Calls a host's callbacks. What one throws is kept, the work it was called from is stopped, and
/// finish() throws it on the caller's own thread.
class HostCalls {
 public:
  explicit HostCalls(const std::atomic<bool>* stop) : flag_(stop) {}
  CancelFlag& flag() { return flag_; }
  template <class Call>
  void operator()(const Call& call) {
    const std::lock_guard lock(mutex_);
    if (thrown_) return;
    try {
      call();
    } catch (...) {
      thrown_ = std::current_exception();
      flag_.raise();
    }
  }
  void finish() const {
    const std::lock_guard lock(mutex_);
    if (thrown_) std::rethrow_exception(thrown_);
  }

 private:
  mutable std::mutex mutex_;
  std::exception_ptr thrown_;
  CancelFlag flag_;
};

/// Runs `body` so that it fails as FastServeError only, whatever the parts throw.
template <class Body>
auto only_our_errors(const Body& body) {
  try {
    return body();
  } catch (const FastServeError&) {
    throw;
  } catch (const std::bad_alloc&) {
    raise({ErrorCode::kResourceExhausted, "out of memory", "", "ask for less at once"});
  } catch (const std::exception& error) {
    raise({ErrorCode::kInternal, error.what(), "", "please report this"});
  }
}

}  // namespace

class FastServe::State {
 public:
  State(std::string model, const SystemOptions& options) : model_(std::move(model)) {
    name_ = value_or_raise(ModelRef::parse(model_)).name;
    NodeOptions node;
    node.root = options.store_path;
    node.lanes = options.lanes;
    node.device = options.device;
    if (options.on_log)
      node.log = Log([sink = options.on_log](LogLevel, std::string_view line) {
        try {
          sink(std::string(line));
        } catch (...) {  // a line that cannot be told harms no work
        }
      });
    node_ = value_or_raise(Node::create(std::move(node)));
  }

  Node& node() { return *node_; }
  const std::string& model() const { return model_; }
  const std::string& name() const { return name_; }  ///< without its version

  /// `listen` false: for generate() alone, until something newer is published.
  void deploy(const DeployOptions& o, bool listen) {
    DeployRequest r;
    r.models = {model_};
    r.models.insert(r.models.end(), o.others.begin(), o.others.end());
    r.address = o.address;
    r.port = o.port;
    r.allow_remote = o.allow_remote;
    if (!o.weights.empty()) r.weights = value_or_raise(parse_weight_format(o.weights));
    r.context_tokens = o.context_tokens;
    r.max_queue = o.max_queue;
    r.model_memory = o.model_memory;
    if (!o.kv.empty()) r.kv = value_or_raise(parse_kv_type(o.kv));
    r.turns = o.turns;
    r.host_memory = o.host_memory;
    stop();  // its port and its memory may be needed
    std::shared_ptr<Deployment> fresh = value_or_raise(node_->deploy(r, listen));
    const std::lock_guard lock(mutex_);
    port_ = fresh->port();
    deployment_ = std::move(fresh);
  }
  void stop() {
    std::shared_ptr<Deployment> last;  // goes when nobody asks it any more
    const std::lock_guard lock(mutex_);
    if (answering_ != nullptr) answering_->raise();
    port_ = 0;
    last = std::move(deployment_);
  }
  /// While it lives a generate() asks the running deployment, or one loaded for it, and stop()
  /// raises its flag.
  class Answering {
   public:
    Answering(State& state, CancelFlag& flag) : state_(state) {
      for (int loads = 0; !begin(flag); loads++) {
        if (loads > 0) raise({ErrorCode::kCancelled, "was stopped", state.model_, "ask again"});
        state.deploy({}, false);
      }
    }
    ~Answering() {
      const std::lock_guard lock(state_.mutex_);
      state_.answering_ = nullptr;
    }
    GenerateService& service() const { return deployment_->service(); }

   private:
    bool begin(CancelFlag& flag) {
      const std::lock_guard lock(state_.mutex_);
      deployment_ = state_.deployment_;
      if (deployment_) state_.answering_ = &flag;
      return deployment_ != nullptr;
    }
    State& state_;
    std::shared_ptr<Deployment> deployment_;
  };
  /// What generate() loaded for itself is no longer the current version.
  void published() {
    if (port() == 0) stop();
  }
  int port() const {
    const std::lock_guard lock(mutex_);
    return port_;
  }

 private:
  std::string model_, name_;
  std::unique_ptr<Node> node_;
  mutable std::mutex mutex_;  // of all below
  std::shared_ptr<Deployment> deployment_;
  CancelFlag* answering_ = nullptr;
  int port_ = 0;
};

FastServe::FastServe(std::string model, SystemOptions options) {
  only_our_errors([&] { state_ = std::make_unique<State>(std::move(model), options); });
}

FastServe::~FastServe() = default;

TrainReport FastServe::train(const TrainOptions& options) {
  HostCalls host(options.stop);
  const auto progress = [&](const TrainUpdate& u) {
    if (!options.on_progress) return;
    host([&] {
      options.on_progress({u.step, u.steps, u.loss, u.validation_loss, u.learning_rate,
                           u.gradient_norm, u.tokens_per_second, u.eta_seconds});
    });
  };
  Result<TrainResult> result = only_our_errors([&] {
    return state_->node().train(to_request(state_->model(), options), progress, host.flag());
  });
  host.finish();
  const TrainResult r = value_or_raise(std::move(result));
  state_->published();
  return {r.model.text(),  r.job,
          r.steps,         r.tokens,
          r.train_loss,    r.validation_loss,
          r.seconds,       r.tokens_per_second,
          r.stopped_early, r.peak_bytes,
          r.weights_hash};
}

CompressReport FastServe::compress(const CompressOptions& options) {
  HostCalls host(options.stop);
  const auto progress = [&](std::string_view stage, double fraction) {
    if (!options.on_progress) return;
    host([&] { options.on_progress(std::string(stage), fraction); });
  };
  Result<CompressResult> result = only_our_errors([&] {
    return state_->node().compress(to_request(state_->model(), options), progress, host.flag());
  });
  host.finish();
  const CompressResult r = value_or_raise(std::move(result));
  state_->published();
  return {r.model.text(),           r.before.bytes,     r.after.bytes,
          r.before.perplexity,      r.after.perplexity, r.before.tokens_per_second,
          r.after.tokens_per_second};
}

void FastServe::deploy(const DeployOptions& options) {
  only_our_errors([&] { state_->deploy(options, true); });
}

int FastServe::port() const { return state_->port(); }

void FastServe::stop() { state_->stop(); }

Generation FastServe::generate(const std::string& prompt, const GenerateOptions& options) {
  HostCalls host(options.cancel);
  const auto on_text = [&](const std::string& text) {
    bool wanted = true;
    if (options.on_text) host([&] { wanted = options.on_text(text); });
    return wanted;
  };
  Result<Answer> answer = only_our_errors([&] {
    GenerateRequest request = to_request(options);
    request.prompt = prompt;
    if (request.model.empty()) request.model = state_->name();
    const State::Answering answering(*state_, host.flag());
    return generate_and_wait(answering.service(), request, on_text, host.flag());
  });
  host.finish();
  return to_generation(value_or_raise(std::move(answer)), options.top_logprobs >= 0);
}

std::string FastServe::import_model(const std::string& directory) {
  const ModelRef ref = only_our_errors([&] {
    const CancelFlag never;
    return value_or_raise(state_->node().import_directory(directory, state_->model(), {}, never));
  });
  state_->published();
  return ref.text();
}

void FastServe::export_model(const std::string& directory) {
  only_our_errors([&] {
    const ModelRef ref = value_or_raise(ModelRef::parse(state_->model()));
    const Status status = state_->node().export_directory(ref, directory, false, {}, CancelFlag());
    if (!status.ok()) raise(status.error());
  });
}

const char* version() { return FASTSERVE_VERSION; }

}  // namespace fastserve
