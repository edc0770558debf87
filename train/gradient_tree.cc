#include "train/gradient_tree.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace fastserve {

GradientTree::GradientTree(StepLayout layout)
    : layout_(layout), scratch_(kBlock * std::bit_width(layout.microbatches())) {}

GradientTree::Added GradientTree::add(Subtree subtree, GradientHandle sum) {
  FS_CHECK(subtree.count > 0 && subtree.end() <= layout_.microbatches());
  if (complete()) return Added::kRepeated;
  // Two nodes are either nested or disjoint, so only the part before can hold this one.
  auto after = parts_.upper_bound(subtree.first);
  if (after != parts_.begin() && std::prev(after)->second.first.covers(subtree))
    return Added::kRepeated;
  for (auto it = parts_.lower_bound(subtree.first);
       it != parts_.end() && subtree.covers(it->second.first); it = parts_.erase(it))
    covered_ -= it->second.first.count;
  parts_.emplace(subtree.first, std::pair(subtree, std::move(sum)));
  covered_ += subtree.count;
  return Added::kNew;
}

const float* GradientTree::sum(Subtree node, size_t from, size_t n, float* into, size_t depth,
                               const TrainOps& ops) {
  const auto part = parts_.find(node.first);
  if (part != parts_.end() && part->second.first == node) return part->second.second->at(from);
  const auto [left, right] = StepLayout::children(node);
  const float* a = sum(left, from, n, into, depth, ops);
  const float* b = sum(right, from, n, scratch_.data() + depth * kBlock, depth + 1, ops);
  ops.add(a, b, into, n);
  return into;
}

const float* GradientTree::join(size_t from, size_t n, const TrainOps& ops) {
  FS_CHECK(complete());
  const GradientHandle& whole = parts_.begin()->second.second;
  if (parts_.size() > 1)
    for (size_t at = from; at < from + n; at += kBlock)
      sum(layout_.root(), at, std::min(kBlock, from + n - at), whole->at(at), 0, ops);
  return whole->at(from);
}

float* GradientTree::sum_in_place(Subtree node, size_t from, size_t n, const TrainOps& ops) {
  const auto part = parts_.find(node.first);
  if (part != parts_.end() && part->second.first == node) return part->second.second->at(from);
  const auto [left, right] = StepLayout::children(node);
  float* const a = sum_in_place(left, from, n, ops);
  ops.add(a, sum_in_place(right, from, n, ops), a, n);
  return a;
}

float* GradientTree::join_in_place(size_t from, size_t n, const TrainOps& ops) {
  FS_CHECK(complete());
  return sum_in_place(layout_.root(), from, n, ops);
}

struct GradientTree::Pieces {
  size_t size;
  float* scratch;
  const Fetch& fetch;
  const TrainOps& ops;
};

const float* GradientTree::sum_fetched(Subtree node, size_t from, size_t n, float* into,
                                       size_t depth, const Pieces& pieces) {
  const auto part = parts_.find(node.first);
  if (part != parts_.end() && part->second.first == node)
    return pieces.fetch(*part->second.second, from, n, into);
  const auto [left, right] = StepLayout::children(node);
  const float* a = sum_fetched(left, from, n, into, depth, pieces);
  const float* b =
      sum_fetched(right, from, n, pieces.scratch + depth * pieces.size, depth + 1, pieces);
  pieces.ops.add(a, b, into, n);
  return into;
}

void GradientTree::join_into(GradientHandle result, size_t from, size_t n, size_t piece,
                             float* scratch, const Fetch& fetch, const TrainOps& ops) {
  FS_CHECK(complete());
  const Pieces pieces{piece, scratch, fetch, ops};
  for (size_t at = from; at < from + n; at += piece) {
    float* const into = result->at(at);
    FS_CHECK(sum_fetched(layout_.root(), at, std::min(piece, from + n - at), into, 0, pieces) ==
             into);
  }
  become(std::move(result));
}

GradientHandle GradientTree::sum_of(int member, size_t from, size_t n, const TrainOps& ops) {
  GradientHandle first;
  for (const auto& [at, part] : parts_) {
    const GradientHandle& buffer = part.second;
    if (buffer->member() != member) continue;
    if (first == nullptr)
      first = buffer;
    else
      ops.add(first->at(from), buffer->at(from), first->at(from), n);
  }
  return first;
}

void GradientTree::become(GradientHandle whole) {
  parts_.clear();
  parts_.emplace(0, std::pair(layout_.root(), std::move(whole)));
}

size_t GradientTree::depth(uint32_t microbatches) {
  return static_cast<size_t>(std::bit_width(microbatches));
}

bool GradientTree::all_of(int member) const {
  return std::ranges::all_of(
      parts_, [&](const auto& part) { return part.second.second->member() == member; });
}

void GradientTree::release_parts() {
  FS_CHECK(complete());
  parts_.erase(std::next(parts_.begin()), parts_.end());
}

void GradientTree::clear() {
  parts_.clear();
  covered_ = 0;
}

}  // namespace fastserve
