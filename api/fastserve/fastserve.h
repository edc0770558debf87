// FastServe as a library: train, compress and serve a language model inside a host program.
//
//   #include <fastserve/fastserve.h>
//
//   fastserve::FastServe fs{"my_model"};
//   fs.train({.data_path = "train_data", .batch_size = 32, .epochs = 10});
//   fs.compress({.weights = "int8"});
//   fs.deploy({.port = 8080});
//   std::cout << fs.generate("ROMEO:", {.max_tokens = 100}).text;
//
// The host owns its threads, its signals and its shutdown: every call below blocks its caller until
// it is done, except deploy(), whose server lives until stop() or the destructor. After destruction
// no thread and no temporary file of this object is left. Several objects may live in one process.
//
// Every call that fails throws FastServeError. What a host's own callback throws ends the call it
// was made from, and comes out of that call as it is.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastserve {

/// Thrown by every call that fails: what() is one line saying what failed, on what, and what to do.
class FastServeError : public std::runtime_error {
 public:
  FastServeError(int code, const std::string& message) : std::runtime_error(message), code_(code) {}
  /// Number of an ErrorCode (docs/exit-codes.md): 1 invalid argument, 2 not found, ...
  int code() const { return code_; }

 private:
  int code_;
};

struct SystemOptions {
  std::string store_path = {};  ///< empty: $FASTSERVE_HOME, else the user's data folder
  int lanes = 0;                ///< CPU cores to use; 0: all that this process may
  /// cpu, cuda, or auto: the first GPU that is fit, else the CPU. cuda:1: that GPU; cuda:all and
  /// cuda:0,2: several, to train on together.
  std::string device = "auto";
  /// One-line messages of what was chosen and done; empty: silent. Called from any thread; what it
  /// throws is dropped.
  std::function<void(const std::string& line)> on_log = {};
};

struct TrainStatus {
  int64_t step = 0, steps = 0;
  double loss = 0;             ///< of this step, nats per token
  double validation_loss = 0;  ///< of the latest evaluation; NaN before the first
  double learning_rate = 0, gradient_norm = 0;
  double tokens_per_second = 0, eta_seconds = 0;
};

struct TrainOptions {
  std::string data_path = {};   ///< folder or file: .txt, .md, .jsonl ("text"), or token shards
  int batch_size = 0;           ///< sequences a step; 0: the preset's
  double epochs = 0;            ///< passes over the data; 0: the preset's steps
  int64_t steps = 0;            ///< optimiser steps; over epochs when set
  std::string preset = "tiny";  ///< tiny, small, gpt2, llama-110m, llama-1b
  std::string from = {};        ///< fine-tune this stored model instead of a preset
  int block = 0;                ///< tokens a sequence; 0: the preset's
  double learning_rate = 0;     ///< 0: the preset's
  std::string precision = {};   ///< fp32, bf16, fp16; empty: the preset's
  uint64_t seed = 1337;         ///< same seed, data and settings: same bits, however many trainers
  int trainers = 0;             ///< trainer actors; 0: chosen
  int microbatches = 0;         ///< a step is cut into; 0: chosen
  int patience = 0;             ///< evaluations without improvement before stopping; 0: never
  int accumulation = 1;         ///< batches summed into one step
  std::string resume = {};      ///< id of an interrupted job: go on with it; of the fields above
                                ///< only trainers counts then
  /// From another thread, a few times a second.
  std::function<void(const TrainStatus&)> on_progress = {};
  const std::atomic<bool>* stop = nullptr;  ///< set it to stop at the next step, with a checkpoint
};

struct TrainReport {
  std::string model;  ///< "name@version" that was published
  std::string job;
  int64_t steps = 0, tokens = 0;
  double train_loss = 0, validation_loss = 0;
  double seconds = 0, tokens_per_second = 0;
  bool stopped_early = false;
  uint64_t peak_bytes = 0;    ///< of weights, gradients, optimiser and activations together
  uint64_t weights_hash = 0;  ///< equal for equal bits
};

struct CompressOptions {
  std::string weights = "int8";  ///< bf16, f16, int8, int8-g32, int8-g128, int4-g32, int4-g128
  std::string prune = "none";    ///< none, magnitude, wanda, 2:4, wanda-2:4, neurons
  double sparsity = 0;           ///< fraction removed, for magnitude, wanda and neurons
  double max_perplexity_increase = 0;  ///< e.g. 0.01 = 1 %; 0: no bound
  double max_perplexity = 0;           ///< 0: no bound
  uint64_t max_bytes = 0;              ///< 0: no bound
  std::string data_path = {};  ///< calibration and held-out text; empty: what it was trained on
  std::string to = {};         ///< name to publish under; empty: a new version of the same name
  std::function<void(const std::string& stage, double fraction)> on_progress = {};
  const std::atomic<bool>* stop = nullptr;
};

struct CompressReport {
  std::string model;  ///< "name@version" that was published
  uint64_t bytes_before = 0, bytes_after = 0;
  double perplexity_before = 0, perplexity_after = 0;
  double tokens_per_second_before = 0, tokens_per_second_after = 0;
};

struct DeployOptions {
  int port = 8080;  ///< 0: any free one
  std::string address = "127.0.0.1";
  bool allow_remote = false;  ///< required for an address that is not loopback
  std::string weights = {};   ///< format for weights stored as floats; empty: bf16
  int context_tokens = 0;     ///< tokens of KV cache over all requests; 0: chosen
  int max_queue = 256;        ///< requests waiting before new ones are refused
  uint64_t model_memory = 0;  ///< bytes of the device it may take; 0: what the device has
  std::string kv = {};        ///< keys and values are kept as f16 (empty), f32 or int8
  /// More models of the store, deployed beside this one; requests name theirs.
  std::vector<std::string> others = {};
  bool turns = false;        ///< those that do not fit together take turns in the device's memory
  uint64_t host_memory = 0;  ///< with turns on a GPU: bytes of pinned memory that weights lie in
};

struct GenerateOptions {
  int max_tokens = 128;
  double temperature = 1.0, top_p = 1.0, min_p = 0.0, repetition_penalty = 1.0;
  int top_k = 0;
  uint64_t seed = 0;
  std::vector<std::string> stop = {};  ///< end before any of these texts
  bool ignore_eos = false;
  /// Text as it is produced, on the caller's thread; return false to cancel.
  std::function<bool(const std::string& text)> on_text = {};
  double timeout_seconds = 0;  ///< from submission, waiting included; 0: none
  int top_logprobs = -1;       ///< -1: none; n: of each chosen token and of the n likeliest, to 20
  const std::atomic<bool>* cancel = nullptr;  ///< set it from any thread to end the answer
  /// Which one, of several that are deployed together; empty: a FastServe's own.
  std::string model = {};
};

struct TokenLikelihood {
  int32_t token = 0;
  double logprob = 0;  ///< natural logarithm, of the model's own distribution
};

struct Generation {
  std::string text;
  std::vector<int32_t> tokens;
  std::string finish_reason;  ///< eos, stop, length, context, cancelled, deadline
  int prompt_tokens = 0;
  // With top_logprobs, one entry a token:
  std::vector<double> logprobs;
  std::vector<std::vector<TokenLikelihood>> top_logprobs;
};

/// One model by name, and the actor system that trains, compresses and serves it.
///
/// Threads: one call at a time, but for port() and stop(), which any thread may make meanwhile.
class FastServe {
 public:
  /// `model`: "name"; "name@3" or "name@tag" to serve and export that version.
  explicit FastServe(std::string model, SystemOptions options = {});
  ~FastServe();
  FastServe(const FastServe&) = delete;
  FastServe& operator=(const FastServe&) = delete;

  /// Trains and publishes a new version of the model.
  TrainReport train(const TrainOptions& options);
  /// Publishes a smaller variant; throws, publishing nothing, when a bound is broken.
  CompressReport compress(const CompressOptions& options = {});
  /// Loads the model's current version and serves it over Cap'n Proto until stop(). A deployment
  /// that is running ends first; after a failure there is none.
  void deploy(const DeployOptions& options = {});
  int port() const;  ///< of the running deployment; 0 when there is none
  void stop();       ///< ends the deployment; running requests finish as cancelled

  /// Generates in this process, without a socket, from the deployment's version of the model, or
  /// from the current one when nothing is deployed.
  Generation generate(const std::string& prompt, const GenerateOptions& options = {});

  /// Takes a Hugging Face directory into the store, or writes one.
  std::string import_model(const std::string& directory);
  void export_model(const std::string& directory);

 private:
  class State;
  std::unique_ptr<State> state_;
};

/// "0.1.0"
const char* version();

}  // namespace fastserve
