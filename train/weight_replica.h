// A node's copy of the weights, of which it owns some and is sent the rest.
#pragma once

#include <mutex>
#include <optional>
#include <vector>

#include "base/ids.h"
#include "train/parameter_shard.h"
#include "train/weight_codec.h"
#include "train/weights_gate.h"

namespace fastserve {

/// Knows the step of every shard's range in this node's weights.
///
/// Threads:  any; the weights of different ranges may be taken in at once.
/// Promises: a range never goes back to an earlier step.
class WeightReplica {
 public:
  /// All must outlive this. No range has a step yet.
  WeightReplica(TrainBackend& backend, WeightsGate& gate,
                std::vector<ParameterShard::Range> ranges);

  const ParameterShard::Range& range(size_t r) const { return ranges_[r]; }
  size_t ranges() const { return ranges_.size(); }

  /// Takes in the range's weights after `step` steps, and packs them. Older ones change nothing.
  void take(size_t r, StepId step, std::span<const float> weights);
  /// The same from a frame; `codec` is the range's. kUnavailable for one that does not follow on
  /// the last. A change that comes before the first whole weights is none of this node's.
  Status take_frame(size_t r, StepId step, std::span<const std::byte> frame,
                    const WeightCodec& codec);
  /// Takes them in even if they are no news: exact ones, of a range that this node is to hold.
  /// False when the range is at a later step.
  bool restore(size_t r, StepId step, std::span<const float> weights);
  /// Whether the range is at a later step.
  bool past(size_t r, StepId step) const;
  /// Whether `step` would be news of the range.
  bool behind(size_t r, StepId step) const;
  /// A shard of this node has brought its own range to `step`.
  void applied(size_t r, StepId step);
  /// The latest step that any range is at.
  std::optional<StepId> newest() const;
  /// The step that all ranges are at, when they are at the same.
  std::optional<StepId> whole() const;

 private:
  bool holds(size_t r) const;
  void refresh(size_t r);
  bool write(size_t r, StepId step, bool wanted, std::span<const float> weights);

  TrainBackend& backend_;
  WeightsGate& gate_;
  std::vector<ParameterShard::Range> ranges_;
  mutable std::mutex mutex_;
  std::vector<std::optional<StepId>> steps_;
  std::vector<uint64_t> versions_;  // of frames; each is touched by one thread at a time
};

}  // namespace fastserve
