// AdamW's bfloat16 copies, rounded by dice.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "gpu/simt/emulated_runtime.h"
#include "gpu/train_ops.h"

namespace fastserve::gpu {
namespace {

struct Step {
  std::vector<float> param, m, v, grad;
  std::vector<BFloat16> copy;
  explicit Step(std::vector<float> x)
      : param(std::move(x)), m(param.size()), v(m), grad(m), copy(param.size()) {}
  AdamW op(size_t from, size_t n) {
    return {param.data() + from,
            m.data() + from,
            v.data() + from,
            grad.data() + from,
            n,
            1e-3f,
            0.9f,
            0.95f,
            1e-8f,
            0.0f,
            1,
            1.0f};
  }
};

}  // namespace

TEST_CASE("copies rounded by dice are right on average, and neighbours of the number") {
  constexpr size_t kN = 4000;
  const float step = 0x1p-7f, x = 1 + step / 4;  // a quarter of the way to the next bfloat16
  Step s(std::vector<float>(kN, x));
  const auto runtime = simt::make_emulated_runtime();
  adamw_with_copy(*runtime, s.op(0, kN), s.copy.data(), 7, 0);
  size_t above = 0;
  for (const BFloat16 c : s.copy) {
    const float value = to_float(c);
    CHECK((value == 1.0f || value == 1 + step));
    above += value > 1;
  }
  CHECK(s.param == std::vector<float>(kN, x));  // no gradient, no decay
  const double deviation = std::sqrt(kN * 0.25 * 0.75);
  CHECK(std::abs(static_cast<double>(above) - kN * 0.25) < 5 * deviation);
  CHECK(runtime->sync().ok());
}

TEST_CASE("how parameters are cut into calls changes no copy, and exact numbers keep theirs") {
  std::vector<float> numbers = {0.0f, -0.0f, 1.5f, -3.0f, INFINITY, NAN};
  for (int i = 0; i < 600; ++i) numbers.push_back(0.1f * static_cast<float>(i) - 7);
  Step whole(numbers), cut(numbers);
  const auto runtime = simt::make_emulated_runtime();
  adamw_with_copy(*runtime, whole.op(0, numbers.size()), whole.copy.data(), 3, 100);
  for (size_t from = 0; from < numbers.size(); from += 101) {
    const size_t n = std::min<size_t>(101, numbers.size() - from);
    adamw_with_copy(*runtime, cut.op(from, n), cut.copy.data() + from, 3, 100 + from);
  }
  for (size_t i = 0; i < numbers.size(); ++i) CHECK(whole.copy[i].bits == cut.copy[i].bits);
  for (size_t i = 0; i < 5; ++i) CHECK(to_float(whole.copy[i]) == numbers[i]);
  CHECK(std::isnan(to_float(whole.copy[5])));
  CHECK(runtime->sync().ok());
}

}  // namespace fastserve::gpu
