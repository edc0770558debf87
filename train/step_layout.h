// How one step is cut into microbatches, and the one order in which their gradients are summed.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace fastserve {

/// A node of a step's tree: the microbatches [first, first + count).
struct Subtree {
  uint32_t first = 0, count = 0;
  uint32_t end() const { return first + count; }
  bool covers(Subtree other) const { return first <= other.first && other.end() <= end(); }
  auto operator<=>(const Subtree&) const = default;
};

/// The binary tree over microbatches 0..n-1 that splits n at the largest power of two below n:
/// 7 = 4 + 3, 4 = 2 + 2, 3 = 2 + 1. A sum taken along it has the same bits whoever computes its
/// parts.
///
/// Promises: a value without state; every call is O(log n) unless it returns a list.
class StepLayout {
 public:
  /// Requires microbatches >= 1.
  explicit StepLayout(uint32_t microbatches);

  uint32_t microbatches() const { return microbatches_; }
  Subtree root() const { return {0, microbatches_}; }
  bool is_node(Subtree subtree) const;

  /// Requires a node of two or more microbatches. Depends on the node alone.
  static std::pair<Subtree, Subtree> children(Subtree node);
  /// Nothing for the root. Require a node.
  std::optional<Subtree> parent(Subtree node) const;
  std::optional<Subtree> sibling(Subtree node) const;

  /// The fewest nodes that make up [first, first + count), in order.
  std::vector<Subtree> cover(uint32_t first, uint32_t count) const;
  /// The whole step in nodes of at most `size` microbatches, in order.
  std::vector<Subtree> units(uint32_t size) const;
  /// The whole step in so many runs of about equal length, in order, none of them empty: fewer
  /// where there are fewer microbatches. They need not be nodes. Requires parts >= 1.
  std::vector<Subtree> runs(uint32_t parts) const;

 private:
  uint32_t microbatches_;
};

}  // namespace fastserve
