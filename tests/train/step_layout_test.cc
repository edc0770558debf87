#include <doctest/doctest.h>

#include <algorithm>
#include <tuple>

#include "base/rng.h"
#include "cpu/reference/reference_ops.h"
#include "train/gradient_tree.h"

using namespace fastserve;

namespace {

struct HostFloats final : DeviceBuffer {
  explicit HostFloats(size_t n) : floats(n) {}
  void* data() override { return floats.data(); }
  size_t bytes() const override { return floats.size() * 4; }
  std::vector<float> floats;
};

GradientHandle leaf(uint32_t microbatch, size_t elements) {
  auto memory = std::make_unique<HostFloats>(elements);
  Rng rng(100 + microbatch);
  for (float& value : memory->floats) value = static_cast<float>(rng.normal());
  return std::make_shared<GradientBuffer>(std::move(memory));
}

/// The canonical sum of a node, as any trainer would make it.
GradientHandle partial(Subtree node, size_t elements, const TrainOps& ops) {
  if (node.count == 1) return leaf(node.first, elements);
  const auto [left, right] = StepLayout::children(node);
  GradientHandle sum = partial(left, elements, ops);
  ops.add(sum->data(), partial(right, elements, ops)->data(), sum->data(), elements);
  return sum;
}

std::vector<float> joined(GradientTree& tree, size_t elements, const TrainOps& ops) {
  const float* sum = tree.join(0, elements, ops);
  return {sum, sum + elements};
}

}  // namespace

TEST_CASE("a step of seven microbatches splits into four and three") {
  CHECK(StepLayout::children({0, 7}) == std::pair(Subtree{0, 4}, Subtree{4, 3}));
  CHECK(StepLayout::children({0, 8}) == std::pair(Subtree{0, 4}, Subtree{4, 4}));
  const StepLayout layout(7);
  CHECK(layout.is_node({4, 2}));
  CHECK_FALSE(layout.is_node({1, 2}));
  CHECK_FALSE(layout.is_node({6, 2}));
  CHECK_FALSE(layout.is_node({0xffffffff, 2}));
  CHECK(layout.parent({6, 1}) == Subtree{4, 3});
  CHECK(layout.sibling({6, 1}) == Subtree{4, 2});
  CHECK_FALSE(layout.parent({0, 7}).has_value());
}

TEST_CASE("any range of any step is covered by nodes that join without gaps") {
  for (uint32_t n = 1; n <= 21; n++) {
    const StepLayout layout(n);
    for (uint32_t first = 0; first < n; first++)
      for (uint32_t count = 1; first + count <= n; count++) {
        uint32_t at = first;
        for (const Subtree node : layout.cover(first, count)) {
          CHECK(layout.is_node(node));
          CHECK(node.first == at);
          at = node.end();
        }
        CHECK(at == first + count);
      }
    for (uint32_t size : {1u, 2u, 4u, 8u}) {
      uint32_t at = 0;
      for (const Subtree unit : layout.units(size)) {
        CHECK((layout.is_node(unit) && unit.count <= size && unit.first == at));
        at = unit.end();
      }
      CHECK(at == n);
    }
  }
}

TEST_CASE("a step's sum has the same bits in whatever pieces and order it arrives") {
  const auto ops = make_reference_train_ops(Precision::kFloat32);
  constexpr size_t kElements = 9001;  // more than two blocks
  for (uint32_t n : {1u, 2u, 3u, 5u, 7u, 8u, 13u}) {
    const StepLayout layout(n);
    GradientTree whole(layout);
    whole.add(layout.root(), partial(layout.root(), kElements, *ops));
    const std::vector<float> expected = joined(whole, kElements, *ops);
    Rng rng(n);
    for (int round = 0; round < 10; round++) {
      std::vector<Subtree> pieces = layout.units(1u << rng.below(4));
      for (size_t i = pieces.size(); i > 1; i--) std::swap(pieces[i - 1], pieces[rng.below(i)]);
      GradientTree tree(layout);
      for (const Subtree piece : pieces) {
        CHECK_FALSE(tree.complete());
        CHECK(tree.add(piece, partial(piece, kElements, *ops)) == GradientTree::Added::kNew);
      }
      CHECK(tree.complete());
      CHECK(joined(tree, kElements, *ops) == expected);
      GradientTree in_place(layout);
      for (const Subtree piece : pieces) in_place.add(piece, partial(piece, kElements, *ops));
      const float* const sum = in_place.join_in_place(0, kElements, *ops);
      CHECK(sum == in_place.whole()->data());
      CHECK(std::equal(expected.begin(), expected.end(), sum));
    }
  }
}

TEST_CASE("a sum over several memories has the same bits, wherever its parts lie") {
  const auto ops = make_reference_train_ops(Precision::kFloat32);
  constexpr size_t kElements = 1000, kFrom = 130, kSize = 700, kPiece = 97;
  // What lies elsewhere is worth its negative until it is fetched.
  const GradientTree::Fetch fetch = [](const GradientBuffer& buffer, size_t from, size_t n,
                                       float* room) -> const float* {
    if (buffer.member() == 0) return buffer.at(from);
    for (size_t i = 0; i < n; i++) room[i] = -buffer.at(from)[i];
    return room;
  };
  for (uint32_t n : {1u, 2u, 3u, 7u, 8u, 13u}) {
    const StepLayout layout(n);
    const GradientHandle sum = partial(layout.root(), kElements, *ops);
    Rng rng(n);
    for (int round = 0; round < 12; round++) {
      GradientTree tree(layout);
      bool all_here = true;
      for (const Subtree piece : layout.units(1u << rng.below(4))) {
        const GradientHandle here = partial(piece, kElements, *ops);
        const auto member = static_cast<int>(rng.below(3));
        auto memory = std::make_unique<HostFloats>(kElements);
        for (size_t i = 0; i < kElements; i++)
          memory->floats[i] = member == 0 ? here->data()[i] : -here->data()[i];
        all_here = all_here && member == 0;
        tree.add(piece, std::make_shared<GradientBuffer>(std::move(memory), 0, member));
      }
      CHECK(tree.all_of(0) == all_here);
      GradientHandle result = tree.leftmost();
      if (result->member() != 0)
        result = std::make_shared<GradientBuffer>(std::make_unique<HostFloats>(kSize), kFrom);
      std::vector<float> scratch(GradientTree::depth(n) * kPiece + 1, 77.0f);
      if (all_here && n == 1) continue;  // nothing to sum
      tree.join_into(result, kFrom, kSize, kPiece, scratch.data(), fetch, *ops);
      CHECK(scratch.back() == 77.0f);
      CHECK(tree.all_of(0));
      const float* const joined = tree.join_in_place(kFrom, kSize, *ops);
      CHECK(joined == result->at(kFrom));
      CHECK(std::equal(joined, joined + kSize, sum->at(kFrom)));
    }
  }
}

TEST_CASE("a gradient that arrives twice, or inside a larger one, counts once") {
  const auto ops = make_reference_train_ops(Precision::kFloat32);
  const StepLayout layout(7);
  GradientTree once(layout), twice(layout);
  for (const Subtree piece : layout.units(1)) once.add(piece, partial(piece, 50, *ops));
  twice.add({1, 1}, partial({1, 1}, 50, *ops));
  CHECK(twice.add({1, 1}, partial({1, 1}, 50, *ops)) == GradientTree::Added::kRepeated);
  CHECK(twice.add({0, 4}, partial({0, 4}, 50, *ops)) == GradientTree::Added::kNew);
  CHECK(twice.add({2, 2}, partial({2, 2}, 50, *ops)) == GradientTree::Added::kRepeated);
  CHECK(twice.add({4, 3}, partial({4, 3}, 50, *ops)) == GradientTree::Added::kNew);
  CHECK(twice.complete());
  CHECK(twice.add({0, 7}, partial({0, 7}, 50, *ops)) == GradientTree::Added::kRepeated);
  CHECK(joined(twice, 50, *ops) == joined(once, 50, *ops));
}

TEST_CASE(
    "a step cut into runs has no gaps, none of them empty, and none much longer than another") {
  for (uint32_t n = 1; n <= 20; n++)
    for (uint32_t parts = 1; parts <= 8; parts++) {
      const std::vector<Subtree> runs = StepLayout(n).runs(parts);
      CHECK(runs.size() == std::min(n, parts));
      uint32_t at = 0;
      for (const Subtree run : runs) {
        CHECK(run.first == at);
        CHECK(run.count >= n / runs.size());
        CHECK(run.count <= n / runs.size() + 1);
        at = run.end();
      }
      CHECK(at == n);
    }
}

TEST_CASE(
    "what one member computed is added up in the order of its microbatches, once it is asked") {
  const auto ops = make_reference_train_ops(Precision::kFloat32);
  constexpr size_t kElements = 100, kFrom = 13, kSize = 70;
  GradientTree tree(StepLayout(7));
  const auto of = [&](Subtree run, int member) {
    auto memory = std::make_unique<HostFloats>(kElements);
    std::copy_n(partial(run, kElements, *ops)->data(), kElements, memory->floats.data());
    return std::make_shared<GradientBuffer>(std::move(memory), 0, member);
  };
  const std::tuple<Subtree, int> runs[] = {{{5, 2}, 1}, {{2, 3}, 0}, {{0, 2}, 1}};
  for (const auto& [run, member] : runs)
    CHECK(tree.add(run, of(run, member)) == GradientTree::Added::kNew);
  CHECK(tree.add({2, 3}, of({2, 3}, 0)) == GradientTree::Added::kRepeated);
  CHECK(tree.complete());
  const GradientHandle first = of({0, 2}, 1), last = of({5, 2}, 1);
  const GradientHandle sum = tree.sum_of(1, kFrom, kSize, *ops);
  for (size_t i = kFrom; i < kFrom + kSize; i++) CHECK(*sum->at(i) == *first->at(i) + *last->at(i));
  CHECK(*sum->at(0) == *first->at(0));  // another shard's
  CHECK(std::equal(first->at(0), first->at(kFrom), sum->at(0)));
  CHECK(*tree.sum_of(0, kFrom, kSize, *ops)->at(kFrom) == *of({2, 3}, 0)->at(kFrom));
  CHECK(tree.sum_of(2, kFrom, kSize, *ops) == nullptr);
  tree.become(sum);
  CHECK(tree.join_in_place(kFrom, kSize, *ops) == sum->at(kFrom));
}
