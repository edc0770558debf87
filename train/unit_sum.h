// A node's share of a gradient on its way to a parameter server elsewhere.
#pragma once

#include <map>
#include <optional>

#include "base/ids.h"
#include "train/gradient_tree.h"

namespace fastserve {

/// Joins the pieces of each unit that this node computes into the unit's sum over one shard's
/// range: what leaves the node is one run of floats for each unit.
///
/// Threads:  not thread-safe; one for each shard. Several may hold the same buffers, since their
///           ranges are disjoint.
/// Promises: the sum of a unit is taken along the canonical tree.
class UnitSum {
 public:
  /// Elements [begin, end) of the flat gradient.
  UnitSum(size_t begin, size_t end, const TrainOps& ops) : begin_(begin), end_(end), ops_(ops) {}

  struct Whole {
    Subtree unit;
    const float* data;     ///< `end - begin` floats ...
    GradientHandle owner;  ///< ... in here
  };
  /// What comes of a piece: the whole unit, when it was the last. `unit` covers `piece`.
  std::optional<Whole> add(StepId step, Subtree unit, Subtree piece, GradientHandle sum);

 private:
  size_t begin_, end_;
  const TrainOps& ops_;
  StepId step_;
  std::map<Subtree, GradientTree> units_;  // of step_
};

}  // namespace fastserve
