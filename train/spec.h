// What a training job is: everything that decides its bits, and how it is to be run.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "model/config.h"
#include "model/trainable.h"
#include "train/consistency.h"
#include "train/gradient_format.h"

namespace fastserve {

enum class GradientReduce : uint8_t {
  kTree,  ///< along the step's tree: the bits of one card, whatever the number of cards
  /// Each card its own run of the step, then all of them by a library's ring. The bits depend on
  /// the number of cards and on the library; the numerics id names both.
  kRing,
};

/// The settings that decide the finished weights' bits (with the data, the seed and the numerics
/// id).
struct TrainSpec {
  ModelConfig model;
  int block = 64;        ///< tokens of a sequence
  int batch = 12;        ///< sequences of a microbatch group that makes one step ...
  int accumulation = 1;  ///< ... times this many: sequences per step = batch * accumulation
  int microbatches = 0;  ///< microbatches a step is cut into; 0: chosen from the shapes alone
  Precision precision = Precision::kBFloat16;
  int64_t steps = 0;  ///< optimiser steps; 0: from epochs
  double epochs = 1.0;
  double learning_rate = 1e-3, min_learning_rate = 1e-4;
  int64_t warmup_steps = 100;
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.1;
  double clip_norm = 1.0;  ///< 0: no clipping
  uint64_t seed = 1337;
  double validation_fraction = 0.1;
  int64_t evaluate_every = 250;  ///< steps; 0: only at the end
  int evaluate_sequences = 0;    ///< of the validation split; 0: all of it
  int patience = 0;  ///< evaluations without improvement before stopping early; 0: never
  /// What is published: the weights of the best evaluation, or those of the last step.
  bool publish_best = true;
  int64_t checkpoint_every = 250;  ///< steps; 0: only on interruption and at the end
  int keep_checkpoints = 2;        ///< the newest so many
  /// In a cluster: each node with parameters writes its own pieces of a checkpoint, and not the
  /// coordinator the whole. In one process there is one disk, and this says nothing.
  bool node_checkpoints = false;
  int checkpoint_copies = 2;  ///< of each piece, on as many nodes, where there are so many
  /// In which form gradients go to other nodes, and weights come back; in one process nothing
  /// travels. The defaults cost no bit.
  GradientFormat gradients;
  WeightsBack weights_back;
  /// How far nodes may drift apart. In one process there is one node, which must be exact.
  Consistency consistency;
  double outer_learning_rate = 0.7, outer_momentum = 0.9;  ///< of local steps' averages
  /// How the cards of a host add up what each has computed.
  GradientReduce reduce = GradientReduce::kTree;
  /// Nodes that hold each shard beside the one that leads it, and take its place when that is lost.
  /// Costs no bit; gradients travel to all of them.
  int replicas = 0;
  static constexpr int kMostReplicas = 8;

  /// kInvalidArgument naming the field.
  Status validate() const;
  Json to_json() const;
  static Result<TrainSpec> from_json(const Json& json, const std::string& where);
};

/// TrainSpec::node_checkpoints as people write it: "coordinator" or "nodes".
const char* checkpoints_text(bool on_nodes);
Result<bool> parse_checkpoints(const std::string& text);
/// TrainSpec::reduce the same: "tree" or "ring".
const char* reduce_text(GradientReduce reduce);
Result<GradientReduce> parse_reduce(const std::string& text);

/// Where the optimiser of devices with memory of their own works.
enum class OptimiserPlace : uint8_t {
  kHost,    ///< the device computes gradients (train/split_backend.h)
  kDevice,  ///< weights, moments and gradients stay there (train/resident_backend.h)
};

/// How it is run: changes speed, never bits, but for `optimiser`.
struct TrainPlacement {
  int trainers = 0;  ///< trainer actors; 0: chosen from the model's size and the cores
  int lanes = 0;     ///< cores in all; 0: all usable
  int shards = 0;    ///< parameter-server actors; 0: chosen
  /// Nothing: only where memory asks for it.
  std::optional<Recompute> recompute = std::nullopt;
  /// For devices with memory of their own, and the one thing here that decides bits (the numerics
  /// id names it). Nothing: where the checkpoint's was; else on the device, if that is large
  /// enough.
  std::optional<OptimiserPlace> optimiser = std::nullopt;
  int cards = 1;  ///< of this host, each with memory of its own, that work on it together
};

/// Tokeniser of a fresh model.
struct Preset {
  std::string name;
  TrainSpec spec;
  int vocab_size = 0;  ///< of the byte-level BPE to train; 0: only the characters seen
  std::string description;
};

/// "tiny" (nanoGPT's shakespeare-char shape), "small" (~10M), "gpt2" (124M), "llama-110m",
/// "llama-1b". The model's vocab_size is filled in once the tokenizer is known.
Result<Preset> find_preset(const std::string& name);
std::vector<Preset> all_presets();

}  // namespace fastserve
