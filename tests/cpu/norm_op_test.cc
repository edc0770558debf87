// Embedding look-up, norms, rotary embedding.
#include "tests/cpu/norm_cases.h"

namespace fastserve::harness {

using namespace norm_cases;

TEST_CASE("every path normalises as the reference does, forward and backward") {
  check_train_op("norm", norm_shapes(), run_norm);
}

TEST_CASE("every path embeds and sums embedding gradients in row order") {
  check_train_op("embed",
                 std::vector<EmbedShape>{{1, 1, 1, 1},
                                         {9, 5, 4, 7},
                                         {40, 65, 16, 64},
                                         {70, 30, 0, 100},
                                         {130, 512, 64, 128},
                                         {33, 3, 40, 17}},
                 run_embed);
}

TEST_CASE("every path rotates and normalises heads as the reference does") {
  std::vector<RotaryShape> shapes;
  for (const HeadShape& heads :
       {HeadShape{1, 1, 2}, {4, 2, 16}, {3, 1, 24}, {2, 2, 64}, {5, 5, 10}, {8, 2, 128}})
    for (const int rows : {1, 7, 34}) {
      shapes.push_back({heads, rows, false, true, true});
      shapes.push_back({heads, rows, true, true, false});
      shapes.push_back({heads, rows, true, false, false});
      shapes.push_back({heads, rows, false, true, false});
    }
  check_train_op("rotary", shapes, run_rotary);
}

}  // namespace fastserve::harness
