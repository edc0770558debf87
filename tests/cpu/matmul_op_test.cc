// The three products of a linear layer, with their epilogues.
#include "tests/cpu/matmul_cases.h"

namespace fastserve::harness {

using namespace matmul_cases;

TEST_CASE("every path multiplies by a weight matrix as the reference does") {
  check_train_op("matmul", kShapes, run_forward);
}

TEST_CASE("every path carries gradients back through a weight matrix") {
  check_train_op("matmul dx", kShapes, run_backward_input);
}

TEST_CASE("every path carries gradients back through an activation") {
  check_train_op("activation", kShapes, run_activation);
}

TEST_CASE("every path sums weight gradients in one chain per element") {
  check_train_op("matmul dw", weight_shapes(), run_backward_weight);
}

TEST_CASE("packing tile by tile or all at once gives the same matrix") {
  const MatmulShape s{9, 150, 70};
  for (const Precision precision : kPrecisions)
    for (const Isa isa : paths()) {
      Rng rng(24);
      const auto ops = device_of(isa, 1).make_train_ops(precision);
      Array x = random_compute(rng, precision, reference::at(s.rows, s.in));
      Array masters = random_floats(rng, reference::at(s.out, s.in));
      const auto tiles = packed(*ops, s, masters);
      const auto whole = ops->make_matrix(s.out, s.in);
      ops->pack(*whole, 0, s.out, masters.floats());
      Outputs results[2];
      for (int i : {0, 1}) {
        Array out = unwritten_floats(reference::at(s.rows, s.out));
        ops->matmul_forward({i == 0 ? tiles.get() : whole.get(), x.data(), s.rows, s.in, nullptr,
                             MatmulEpilogue::kStoreFloat, out.data(), s.out, nullptr, nullptr});
        results[i] = {float_output("out", out, s.in)};
      }
      require_same_bits(std::string("pack, ") + isa_name(isa), results[0], results[1]);
    }
}

}  // namespace fastserve::harness
