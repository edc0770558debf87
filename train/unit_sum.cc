#include "train/unit_sum.h"

namespace fastserve {

std::optional<UnitSum::Whole> UnitSum::add(StepId step, Subtree unit, Subtree piece,
                                           GradientHandle sum) {
  if (step < step_) return std::nullopt;
  if (step > step_) units_.clear();
  step_ = step;
  // A subtree's shape depends on its size alone: moved to the front it is a tree of its own.
  const auto [at, fresh] = units_.try_emplace(unit, StepLayout(unit.count));
  GradientTree& tree = at->second;
  tree.add({piece.first - unit.first, piece.count}, std::move(sum));
  if (!tree.complete()) return std::nullopt;
  Whole whole{unit, tree.join(begin_, end_ - begin_, ops_), tree.whole()};
  units_.erase(at);
  return whole;
}

}  // namespace fastserve
