#include "compress/pruning.h"

#include <doctest/doctest.h>

#include <cmath>

#include "compress/calibration.h"

using namespace fastserve;

TEST_CASE("the smallest weights go, and of equals the first stays") {
  const std::vector<float> w = {1, -3, 2, 2, 2, 0.5f};
  CHECK(pruning_mask(w, 2, 3, {}, PruningScope::kTensor, 0.5) ==
        std::vector<uint8_t>{0, 1, 1, 1, 0, 0});
  CHECK(pruning_mask(w, 2, 3, {}, PruningScope::kRow, 0.4) ==
        std::vector<uint8_t>{0, 1, 0, 1, 0, 0});
  CHECK(pruning_mask(w, 2, 3, {}, PruningScope::kRow, 0.0) == std::vector<uint8_t>(6, 1));
}

TEST_CASE("Wanda weighs a small weight on a loud channel above a large one on a quiet channel") {
  const std::vector<float> w = {0.1f, 1, 0.2f, 1};
  const std::vector<double> norms = {100, 1, 100, 1};
  CHECK(pruning_mask(w, 1, 4, norms, PruningScope::kRow, 0.5) == std::vector<uint8_t>{1, 0, 1, 0});
  CHECK(pruning_mask(w, 1, 4, {}, PruningScope::kRow, 0.5) == std::vector<uint8_t>{0, 1, 0, 1});
}

TEST_CASE("2:4 keeps two of each four neighbours, and at most two of a shorter last group") {
  const std::vector<float> w = {4, 3, 2, 1, 1, 2, 3};
  CHECK(pruning_mask(w, 1, 7, {}, PruningScope::k2of4) ==
        std::vector<uint8_t>{1, 1, 0, 0, 0, 1, 1});
}

TEST_CASE("a mask sets to zero what it does not keep") {
  std::vector<float> w = {4, 3, 2};
  apply_mask(std::vector<uint8_t>{1, 0, 1}, w);
  CHECK(w == std::vector<float>{4, 0, 2});
}

TEST_CASE("channel norms add up over calls and rows") {
  ChannelNorms norms;
  const float first[] = {3, 0, 0, 1}, second[] = {4, 2};
  norms.observe("up", first, 2, 2);
  norms.observe("up", second, 1, 2);
  CHECK(norms.norms("up") == std::vector<double>{5, std::sqrt(5.0)});
  CHECK(norms.norms("down").empty());
  CHECK(norms.tokens() == 3);
}
