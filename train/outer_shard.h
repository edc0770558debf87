// What the owner of a range does with the displacements that nodes send it.
#pragma once

#include <map>
#include <vector>

#include "base/ids.h"
#include "train/gradient_buffer.h"
#include "train/outer_optimiser.h"

namespace fastserve {

/// How a round of local steps ends: which displacements make up the mean. The same for every shard.
struct RoundClose {
  struct Counted {
    uint32_t attempt = 0;  ///< names the displacement
    uint32_t share = 0;    ///< microbatches behind it, of each step
  };
  StepId step;         ///< that the round began with
  uint32_t steps = 1;  ///< in it
  std::vector<Counted> counted;
};

/// Collects the displacements of a round, and moves the weights by the mean of those that count.
///
/// A displacement is named by its attempt: whose range is given to a second node is sent twice,
/// under two names, and the coordinator says which one counts. Owns:     the outer optimiser, and
/// handles of the displacements of the round. Threads:  not thread-safe; one per shard. Promises: a
/// displacement counts once at most. The bits follow from what is counted. Refuses:  one of a round
/// that has not begun, or of another size (kInvalidArgument).
class OuterShard {
 public:
  /// `momentum`: of equal size, or empty for none. `step`: steps done.
  OuterShard(const OuterSettings& settings, std::span<const float> weights,
             std::span<const float> momentum, StepId step);

  enum class Arrival { kNew, kRepeated, kLate };
  /// `displacement`: its first floats are the range's.
  Result<Arrival> add(StepId round, uint32_t attempt, GradientHandle displacement);
  /// kCorrupt when one that counts is not here or another round is open; kInvalidArgument when one
  /// is not finite.
  Status close(const RoundClose& order);

  StepId step() const { return step_; }
  std::span<const float> weights() const { return outer_.weights(); }
  std::span<const float> momentum() const { return outer_.state().momentum; }

 private:
  OuterOptimiser outer_;
  StepId step_;
  std::map<uint32_t, GradientHandle> here_;  // by attempt
};

}  // namespace fastserve
