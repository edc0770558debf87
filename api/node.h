// A node: every part of FastServe wired together in one process. The public header, the command and
// the examples stand on it; node*.cc are the only files that construct parts.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/result.h"
#include "compress/contract.h"
#include "cpu/isa.h"
#include "model/decode_ops.h"
#include "net/stream.h"
#include "serve/service.h"
#include "store/store.h"
#include "train/spec.h"

namespace fastserve {

struct NodeOptions {
  Path root;      ///< holds models/ (the store) and jobs/; empty: default_root()
  int lanes = 0;  ///< 0: every usable core
  /// cpu, cuda, or auto: the first GPU that is fit, else the CPU. cuda:1: that GPU; cuda:all and
  /// cuda:0,2: several, to train on together.
  std::string device = "auto";
  Log log;
};

/// $FASTSERVE_HOME, else $XDG_DATA_HOME/fastserve, else ~/.local/share/fastserve.
Path default_root();

struct TrainRequest {
  std::string model;  ///< name to publish under
  Path data;
  std::string preset = "tiny";
  std::string from;  ///< stored model to fine-tune, instead of a preset
  /// Job id: goes on with that job. `data` may say where its data is now, and the overrides may
  /// change its length, learning rates, evaluations and checkpoints; nothing else may be set.
  std::string resume;
  int vocab_size = -1;  ///< of a fresh tokenizer; -1: the preset's; 0: the characters seen
  // Overrides of the preset; unset fields keep it.
  std::optional<int> batch, block, microbatches, accumulation, patience, evaluate_sequences;
  std::optional<int64_t> steps, evaluate_every, checkpoint_every, warmup_steps;
  std::optional<double> epochs, learning_rate, min_learning_rate, weight_decay, clip_norm,
      validation_fraction;
  std::optional<Precision> precision;
  std::optional<uint64_t> seed;
  std::optional<bool> publish_best;  ///< false: the last step's weights, not the best evaluation's
  std::optional<std::string> gradients, weights_back;  ///< forms for other nodes; see TrainSpec
  std::optional<std::string> consistency;              ///< of a cluster's job; see TrainSpec
  std::optional<std::string> checkpoints;              ///< the same: "coordinator" or "nodes"
  std::optional<int> checkpoint_copies, keep_checkpoints;
  std::optional<double> outer_learning_rate, outer_momentum;
  std::optional<int> replicas;        ///< of a cluster's job; see TrainSpec
  std::optional<std::string> reduce;  ///< "tree" or "ring", of several cards; see TrainSpec
  TrainPlacement placement;
};

struct TrainUpdate {
  int64_t step = 0, steps = 0, tokens = 0;
  double loss = 0, validation_loss = 0, learning_rate = 0, gradient_norm = 0;
  double tokens_per_second = 0, eta_seconds = 0;
};

struct TrainResult {
  ModelRef model;
  std::string job;
  int64_t steps = 0, tokens = 0;
  double train_loss = 0;
  double validation_loss = 0;  ///< of the published weights; NaN when nothing was held out
  int64_t published_step = 0;  ///< after which the published weights were taken
  double seconds = 0, tokens_per_second = 0;
  bool stopped_early = false;
  uint64_t peak_bytes = 0, expected_bytes = 0, weights_hash = 0;
};

struct CompressionText;  // compression_text.h

struct CompressRequest {
  std::string model;  ///< stored model to compress
  std::string to;     ///< name of the variant; empty: a new version of `model`
  CompressSpec spec;
  Path data;        ///< empty: the text it was trained on
  std::string job;  ///< noted in the variant's record, when it is not empty
  /// In place of `data`, when it has been read before.
  std::shared_ptr<const CompressionText> text;
};

struct CompressResult {
  ModelRef model;
  Measurement before, after;
  Json card;  ///< settings and every figure, as stored in the lineage
};

struct DeployRequest {
  std::vector<std::string> models;
  std::string address = "127.0.0.1";
  int port = 8080;
  bool allow_remote = false;
  WeightFormat weights = WeightFormat::kBFloat16;  ///< for matrices stored as floats
  KvType kv = KvType::kFloat16;
  int context_tokens = 0;  ///< tokens of KV cache a model; 0: chosen from its context and memory
  int max_queue = 256;
  bool turns = false;         ///< models that do not fit together take turns in the device's memory
  uint64_t host_memory = 0;   ///< with turns on a GPU: bytes of pinned memory that weights lie in
  uint64_t model_memory = 0;  ///< bytes of it that they may take together; 0: what it has
  std::function<void(double)> progress;  ///< from another thread, while deploy() waits
};

/// Models being served. Destroying it ends what runs as cancelled.
class Deployment {
 public:
  virtual ~Deployment() = default;
  virtual int port() const = 0;  ///< 0 when started without a socket
  virtual GenerateService& service() = 0;
  /// Serves a client whose connection was accepted elsewhere.
  virtual void adopt(std::unique_ptr<Stream> stream) = 0;
  /// Takes no more requests, and waits up to `patience` for those that are waiting or running.
  virtual void drain(Nanoseconds patience) = 0;
};

/// One training or compression job as the disk remembers it.
struct JobInfo {
  std::string id, kind, model, state;  ///< state: running, interrupted, finished, failed
  int64_t created_unix = 0, step = 0, steps = 0;
  double loss = 0, validation_loss = 0;
  std::string note;  ///< the error of a failed job, the result of a finished one
  Json details;
};

/// Threads: one call at a time, but for Deployment, which lives on beside them.
class Node {
 public:
  static Result<std::unique_ptr<Node>> create(NodeOptions options);
  virtual ~Node() = default;

  virtual const NodeOptions& options() const = 0;
  /// Opens the store for one piece of work; other processes are refused until it is closed.
  virtual Result<std::unique_ptr<Store>> open_store() const = 0;
  /// For show and list alone: beside another process's work when the store is taken.
  virtual Result<std::unique_ptr<Store>> glance_at_store() const = 0;

  virtual Result<TrainResult> train(const TrainRequest& request,
                                    const std::function<void(const TrainUpdate&)>& progress,
                                    const CancelFlag& cancel) = 0;
  virtual Result<CompressResult> compress(
      const CompressRequest& request,
      const std::function<void(std::string_view stage, double)>& progress,
      const CancelFlag& cancel) = 0;
  /// Returns once the models are loaded; the socket takes requests from the time that their weights
  /// begin to come. `listen` false: no socket, only Deployment::service().
  virtual Result<std::unique_ptr<Deployment>> deploy(const DeployRequest& request, bool listen) = 0;

  virtual Result<ModelRef> import_directory(const Path& directory, const std::string& name,
                                            const std::function<void(double)>& progress,
                                            const CancelFlag& cancel) = 0;
  virtual Status export_directory(const ModelRef& ref, const Path& directory, bool keep_quantised,
                                  const std::function<void(double)>& progress,
                                  const CancelFlag& cancel) = 0;

  virtual Result<std::vector<JobInfo>> jobs() const = 0;
  virtual Result<JobInfo> job(const std::string& id) const = 0;
  virtual Status remove_job(const std::string& id) = 0;
};

}  // namespace fastserve
