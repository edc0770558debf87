#include "train/sampler.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <set>

#include "fake_backend.h"

using namespace fastserve;

namespace {

TokenArray counting(size_t n) {
  std::vector<int32_t> ids(n);
  for (size_t i = 0; i < n; i++) ids[i] = static_cast<int32_t>(i);
  TokenArray tokens;
  tokens.append(ids);
  return tokens;
}

}  // namespace

TEST_CASE("a keyed permutation visits every place once") {
  for (uint64_t n : {1, 2, 3, 7, 64, 65, 1000})
    for (uint64_t key : {0, 1, 99}) {
      const Permutation permutation(n, key);
      std::set<uint64_t> seen;
      for (uint64_t i = 0; i < n; i++) seen.insert(permutation(i));
      CHECK(seen.size() == n);
      CHECK(*seen.rbegin() == n - 1);
    }
}

TEST_CASE("every window comes exactly once an epoch, across steps that straddle two epochs") {
  const TokenArray tokens = counting(1003);
  const Sampler sampler(tokens, {10, 7, 3}, 1337);
  const uint64_t windows = sampler.windows();
  CHECK(windows == 99);
  std::vector<int32_t> firsts;
  for (int64_t step = 0; step < 60; step++)
    for (int g = 0; g < 3; g++) {
      const Microbatch batch = sampler.microbatch(step, g);
      for (size_t s = 0; s + 1 < batch.starts.size(); s++) {
        const auto at = static_cast<size_t>(batch.starts[s]);
        firsts.push_back(batch.tokens[at]);
        for (size_t i = 0; i < 10; i++) {
          CHECK(batch.tokens[at + i] == batch.tokens[at] + static_cast<int32_t>(i));
          CHECK(batch.targets[at + i] == batch.tokens[at + i] + 1);
        }
      }
    }
  for (size_t epoch = 0; epoch < 4; epoch++) {
    const std::set<int32_t> seen(firsts.begin() + static_cast<ptrdiff_t>(epoch * windows),
                                 firsts.begin() + static_cast<ptrdiff_t>((epoch + 1) * windows));
    CHECK(seen.size() == windows);
    std::set<int32_t> offsets;
    for (const int32_t first : seen) offsets.insert(first % 10);
    CHECK(offsets.size() == 1);
  }
  CHECK(std::vector(firsts.begin(), firsts.begin() + 99) !=
        std::vector(firsts.begin() + 99, firsts.begin() + 198));
}

TEST_CASE("the order depends on the seed and on nothing else") {
  const TokenArray tokens = counting(500);
  const Sampler a(tokens, {8, 5, 2}, 1), b(tokens, {8, 5, 5}, 1), c(tokens, {8, 5, 2}, 2);
  CHECK(a.microbatch(3, 1).tokens == Sampler(tokens, {8, 5, 2}, 1).microbatch(3, 1).tokens);
  CHECK(a.microbatch(3, 1).tokens != c.microbatch(3, 1).tokens);
  std::vector<int32_t> in_two, in_five;  // the same step, cut differently
  for (int g = 0; g < 2; g++)
    std::ranges::copy(a.microbatch(9, g).tokens, std::back_inserter(in_two));
  for (int g = 0; g < 5; g++)
    std::ranges::copy(b.microbatch(9, g).tokens, std::back_inserter(in_five));
  CHECK(in_two == in_five);
}

TEST_CASE("a text of one block and one token is one window") {
  const TokenArray tokens = counting(9);
  const Sampler sampler(tokens, {8, 2, 1}, 3);
  CHECK(sampler.windows() == 1);
  CHECK(sampler.microbatch(5, 0).targets.back() == 8);
}

TEST_CASE("an evaluation of the whole split counts every token but the first once") {
  const TokenArray tokens = counting(103);
  const EvaluationPlan plan(tokens, 10, 0, 35);
  CHECK(plan.counted() == 102);
  std::set<int32_t> targets;
  for (uint32_t i = 0; i < plan.chunks(); i++) {
    const Microbatch chunk = plan.chunk(i);
    CHECK(chunk.tokens.size() <= 35);
    targets.insert(chunk.targets.begin(), chunk.targets.end());
  }
  CHECK(targets.size() == 102);
  CHECK(EvaluationPlan(tokens, 10, 4, 20).counted() == 40);
  CHECK(EvaluationPlan(tokens, 10, 4, 20).chunks() == 2);
}
