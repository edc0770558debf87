// One range of the weights in a job whose nodes are not held together step by step.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <vector>

#include "train/gradient_tree.h"
#include "train/outer_shard.h"
#include "train/parameter_shard.h"
#include "train/weight_codec.h"
#include "train/weight_replica.h"

namespace fastserve {

/// On every node: sums its gradient over a run of a step's microbatches. On the owner of the range
/// also: applies each such gradient when it comes, by its share of the step.
///
/// Weights have versions instead of steps: segment << 20 | how many gradients the node that they
/// are for has sent in the segment. A segment begins where all nodes have met. Threads:  not
/// thread-safe. Ranges of one node work at the same time. Promises: a run of a step is applied
/// once, whoever sends it how often.
class LooseRange {
 public:
  /// All must outlive this. `microbatches` of a step.
  LooseRange(TrainBackend& backend, WeightsGate& gate, WeightReplica& replica, size_t index,
             const TrainSpec& spec, uint32_t microbatches, bool owned);

  static StepId version(StepId segment, uint64_t sent = 0) {
    return {segment.value << kVersionBits | sent};
  }
  static StepId segment_of(StepId version) { return {version.value >> kVersionBits}; }
  /// Whether these weights are those on which all nodes have met.
  static bool met(StepId version) { return (version.value & ((1u << kVersionBits) - 1)) == 0; }

  // The node's own gradient.
  void begin(StepId step, uint32_t microbatches);
  /// `piece` counted from the run's front. The squares, tile by tile, once it is whole.
  std::optional<std::vector<double>> add(StepId step, Subtree piece, GradientHandle sum);
  /// `scale` times the whole gradient; once.
  bool take_gradient(StepId step, float scale, std::span<float> out);

  // Weights from the owner.
  void take(StepId version, std::span<const float> weights);
  Status take_frame(StepId version, std::span<const std::byte> frame, const WeightCodec& codec);

  // Of a range that is this node's.
  /// Every range has its first weights.
  void open(StepId segment) {
    segment_ = segment;
    open_ = true;
  }
  /// Until then nothing can be asked of an owner, and what comes is not for this incarnation.
  bool is_open() const { return owned_ && open_; }
  enum class Applied { kNew, kRepeated, kLate };
  /// A gradient that `node` has sent: its first floats are the range's. kInvalidArgument: it is of
  /// no step or run that can be. After all but kLate the node gets weights of version_for() it.
  Result<Applied> apply(const std::string& node, StepId step, Subtree run, GradientHandle gradient);
  StepId version_for(const std::string& node) const;
  /// A node joins, or comes again: it has sent nothing.
  void joined(const std::string& node) { sent_.erase(node); }
  /// The nodes have met: steps from here on are another segment.
  Status close(const RoundClose& order);
  StepId met_version() const { return version(segment_); }
  std::span<const float> weights() const { return shard_.weights(); }
  std::shared_ptr<const ShardState> snapshot() const { return shard_.snapshot(); }
  void restore(std::span<const float> m, std::span<const float> v, int64_t updates);

  const ParameterShard::Range& range() const { return shard_.range(); }
  bool owned() const { return owned_; }

 private:
  static constexpr int kVersionBits = 20;

  TrainBackend& backend_;
  WeightsGate& gate_;
  WeightReplica& replica_;
  const size_t index_;
  const TrainSpec spec_;
  const uint32_t microbatches_;
  const bool owned_;
  ParameterShard shard_;
  GradientTree tree_{StepLayout(1)};
  StepId step_;             // whose gradient is in the tree
  bool gathering_ = false;  // no one has taken it yet
  StepId segment_;
  bool open_ = false;
  using Runs = std::set<std::pair<StepId, uint32_t>>;  // by step and first microbatch
  Runs applied_;                                       // in the segment
  std::map<std::string, Runs> sent_;                   // by node, in the segment
  int64_t updates_ = 0;
};

}  // namespace fastserve
