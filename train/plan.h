// The numbers a job runs with, worked out from its settings.
#pragma once

#include "train/spec.h"
#include "train/step_layout.h"

namespace fastserve {

/// Parameters of a model of this shape, without building it.
int64_t count_parameters(const ModelConfig& config);

/// Microbatches of a step. It decides bits, so it looks at shapes alone, never at the machine:
/// small models get 192 rows and more and at least four parts (so that lanes can take turns), large
/// ones as few parts as activations allow, since each costs a gradient buffer.
int choose_microbatches(const TrainSpec& spec);

/// The same for a device that holds the optimiser, too, and likes long products: as few as let
/// one's activations stay below 24 GiB. Each more costs a gradient buffer and an addition.
int choose_device_microbatches(const TrainSpec& spec);

/// How a job is run on `cores` cores: fills in what the placement leaves open.
struct TrainPlan {
  int sequences = 0;     ///< per step
  int microbatches = 0;  ///< per step
  int max_rows = 0;      ///< of a microbatch
  int trainers = 0, shards = 0;
  int lanes = 0;      ///< in all
  uint32_t unit = 1;  ///< microbatches handed out at once; changes no bits
  int cards = 1;      ///< TrainPlacement's; trainers and shards are shared out among them
  GradientReduce reduce = GradientReduce::kTree;  ///< of the cards; the spec's, if they can
  int64_t tokens_per_step = 0;

  int card_of_trainer(int trainer) const { return trainer % cards; }
  /// Neighbours lie together, as many with each.
  int card_of_shard(int shard, int of) const { return shard * cards / of; }
  int lanes_of(int trainer) const {
    return std::max(1, lanes / trainers + (trainer < lanes % trainers ? 1 : 0));
  }
};
TrainPlan plan_training(const TrainSpec& spec, const TrainPlacement& placement, int cores);

/// For a job that one process runs. kInvalidArgument: a setting that is for the nodes of a cluster.
Status check_for_one_process(const TrainSpec& spec);
/// kInvalidArgument: the plan's cards cannot reduce as the spec asks, since there is one, or not
/// one that works with the optimiser, or one has nothing to do.
Status check_reduce(const TrainSpec& spec, const TrainPlan& plan);

/// Bytes a job needs at its peak: what is trained, and what it takes to train it.
struct MemoryEstimate {
  uint64_t weights = 0, optimiser = 0, gradients = 0, activations = 0, snapshots = 0;
  uint64_t total() const { return weights + optimiser + gradients + activations + snapshots; }
  /// What stays on the host when gradients are computed in a device's own memory; with `resident`
  /// the optimiser works there as well.
  MemoryEstimate beside_a_device(const TrainSpec& spec, bool resident) const;
};
/// Gradient buffers that a step needs at once: one of each unit, and what trainers sum inside
/// theirs.
int gradient_buffers(const TrainPlan& plan);
/// The same for one of its cards, where all are about as fast; and one for a straggler's unit.
int card_gradient_buffers(const TrainPlan& plan);

MemoryEstimate estimate_memory(const TrainSpec& spec, const TrainPlan& plan, bool checkpoints,
                               Recompute recompute = Recompute::kNone);

}  // namespace fastserve
