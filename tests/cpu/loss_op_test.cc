// The classifier's loss, and the optimiser's flat operations.
#include "tests/cpu/loss_cases.h"

namespace fastserve::harness {

using namespace loss_cases;

TEST_CASE("every path finds the loss and its gradient as the reference does") {
  check_train_op("classifier", kLossShapes, run_loss);
}

TEST_CASE("every path takes AdamW's step") { check_train_op("adamw", kFlatShapes, run_adamw); }

TEST_CASE("every path adds with the same bits") { check_train_op("add", kFlatShapes, run_add); }

TEST_CASE("every path sums squares, and lets no NaN or infinity pass") {
  check_train_op("sum_squares", kFlatShapes, run_sum_squares);
  for (const Isa isa : paths()) {
    const auto ops = device_of(isa, 1).make_train_ops(Precision::kFloat32);
    for (const float bad : {INFINITY, -INFINITY, NAN}) {
      std::vector<float> x(1000, 1.0f);
      x[617] = bad;
      CHECK_FALSE(std::isfinite(ops->sum_squares(x.data(), x.size())));
    }
  }
}

}  // namespace fastserve::harness
