#include "train/step_layout.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace fastserve {
namespace {

void collect_cover(Subtree node, Subtree range, std::vector<Subtree>& out) {
  if (range.end() <= node.first || node.end() <= range.first) return;
  if (range.covers(node)) {
    out.push_back(node);
    return;
  }
  const auto [left, right] = StepLayout::children(node);
  collect_cover(left, range, out);
  collect_cover(right, range, out);
}

void collect_units(Subtree node, uint32_t size, std::vector<Subtree>& out) {
  if (node.count <= size) {
    out.push_back(node);
    return;
  }
  const auto [left, right] = StepLayout::children(node);
  collect_units(left, size, out);
  collect_units(right, size, out);
}

}  // namespace

StepLayout::StepLayout(uint32_t microbatches) : microbatches_(microbatches) {
  FS_CHECK(microbatches >= 1);
}

std::pair<Subtree, Subtree> StepLayout::children(Subtree node) {
  FS_CHECK(node.count >= 2);
  const uint32_t left = std::bit_floor(node.count - 1);
  return {{node.first, left}, {node.first + left, node.count - left}};
}

bool StepLayout::is_node(Subtree subtree) const {
  if (subtree.count == 0 || subtree.end() < subtree.first) return false;
  Subtree node = root();
  if (!node.covers(subtree)) return false;
  while (node != subtree) {
    if (node.count < 2) return false;
    const auto [left, right] = children(node);
    if (left.covers(subtree))
      node = left;
    else if (right.covers(subtree))
      node = right;
    else
      return false;
  }
  return true;
}

std::optional<Subtree> StepLayout::parent(Subtree node) const {
  FS_CHECK(is_node(node));
  Subtree above = root();
  if (above == node) return std::nullopt;
  for (;;) {
    const auto [left, right] = children(above);
    if (left == node || right == node) return above;
    above = left.covers(node) ? left : right;
  }
}

std::optional<Subtree> StepLayout::sibling(Subtree node) const {
  const std::optional<Subtree> above = parent(node);
  if (!above) return std::nullopt;
  const auto [left, right] = children(*above);
  return left == node ? right : left;
}

std::vector<Subtree> StepLayout::cover(uint32_t first, uint32_t count) const {
  std::vector<Subtree> nodes;
  if (count > 0) collect_cover(root(), {first, count}, nodes);
  return nodes;
}

std::vector<Subtree> StepLayout::units(uint32_t size) const {
  FS_CHECK(size >= 1);
  std::vector<Subtree> nodes;
  collect_units(root(), size, nodes);
  return nodes;
}

std::vector<Subtree> StepLayout::runs(uint32_t parts) const {
  FS_CHECK(parts >= 1);
  parts = std::min(parts, microbatches_);
  const auto begin = [&](uint64_t part) {
    return static_cast<uint32_t>(part * microbatches_ / parts);
  };
  std::vector<Subtree> runs;
  for (uint32_t i = 0; i < parts; i++) runs.push_back({begin(i), begin(i + 1) - begin(i)});
  return runs;
}

}  // namespace fastserve
