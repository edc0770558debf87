// One range of the weights in a node that trains by itself for some steps.
#pragma once

#include <optional>
#include <vector>

#include "train/outer_shard.h"
#include "train/parameter_shard.h"
#include "train/weight_codec.h"
#include "train/weight_replica.h"

namespace fastserve {

/// What a node of a job with local steps holds of one range: AdamW's state for its own steps, the
/// weights that they began with, and, when the range is its own, the outer optimiser.
///
/// A unit is some steps over a run of each step's microbatches. It ends in a displacement, after
/// which the weights are back where they began, until the round's new ones are taken in; so a node
/// can do a second unit of a round, and frames with the change of weights find what they change.
/// Threads:  not thread-safe. Ranges of one node work at the same time.
/// Promises: new weights end the unit at work: what still comes of it changes nothing.
class LocalRange {
 public:
  /// All must outlive this.
  LocalRange(TrainBackend& backend, WeightsGate& gate, WeightReplica& replica, size_t index,
             const TrainSpec& spec, bool owned);

  // The node's own steps.
  /// Steps follow from `round` on, over runs of `microbatches`.
  void begin(StepId round, uint32_t microbatches);
  /// `piece` counted from the run's front. The squares of the step's gradient, tile by tile, once
  /// it is whole.
  std::optional<std::vector<double>> add(StepId step, Subtree piece, GradientHandle sum);
  /// False when the unit has been left. `order.update` is the range's own count.
  bool apply(ApplyOrder order);
  /// Goes on without the step's gradient.
  bool skip(StepId step);
  /// w_start - w_local to `out`, and ends the unit; false when it has been left.
  bool displace(StepId round, std::span<float> out);

  // Weights that come from elsewhere.
  void take(StepId step, std::span<const float> weights);
  Status take_frame(StepId step, std::span<const std::byte> frame, const WeightCodec& codec);

  // Of a range that is this node's.
  /// Every range has its first weights, those of `step`.
  void open(StepId step);
  /// Until then nothing can be asked of an owner, and what comes is not for this incarnation.
  bool is_open() const { return outer_.has_value(); }
  /// Requires is_open(), as all below.
  OuterShard& outer() { return *outer_; }
  /// As OuterShard's, after which the node has the new weights.
  Status close(const RoundClose& order);
  /// Weights, the outer momentum in place of m, and this node's v.
  std::shared_ptr<const ShardState> snapshot() const;

  /// Before open(). `momentum`: of an owned range; `updates`: steps behind `v`. AdamW's
  /// first moment starts at nothing: it remembers ten steps.
  void restore(std::span<const float> momentum, std::span<const float> v, int64_t updates);

  const ParameterShard::Range& range() const { return shard_.range(); }
  bool owned() const { return owned_; }

 private:
  std::span<float> masters() const {
    const auto& range = shard_.range();
    return backend_.masters().subspan(range.begin, range.end - range.begin);
  }
  void leave();
  void refresh();
  void leave_for(StepId step);

  TrainBackend& backend_;
  WeightsGate& gate_;
  WeightReplica& replica_;
  const size_t index_;
  const OuterSettings settings_;
  const bool owned_;
  ParameterShard shard_;
  std::optional<OuterShard> outer_;
  std::vector<float> momentum_;  // to begin with
  std::vector<float> start_;
  StepId round_;
  bool active_ = false;  // a unit is at work
  bool moved_ = false;   // the packed weights are not those of the round
  int64_t updates_ = 0;
};

}  // namespace fastserve
