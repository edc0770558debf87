#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "base/half.h"
#include "cases.h"
#include "cpu/decode/decode_ops.h"
#include "cpu/reference/reference_ops.h"

namespace fastserve {
namespace {

TEST_CASE("embedding adds the tables' rows exactly, in every type") {
  const int channels = 37, vocab = 50;
  const auto table = normal_floats(static_cast<size_t>(vocab * channels), 40);
  const auto positions = normal_floats(static_cast<size_t>(8 * channels), 41);
  std::vector<BFloat16> brain;
  std::vector<Float16> half;
  for (float v : table) brain.push_back(to_bfloat16(v)), half.push_back(to_float16(v));
  const std::vector<int32_t> tokens = {3, 49, 0, 3}, at = {0, 7, 2, 5};
  const auto reference = make_reference_decode_ops();
  for (Isa isa : runnable_isas())
    for (const float* position_table : {positions.data(), static_cast<const float*>(nullptr)})
      for (const auto& [type, data] :
           std::vector<std::pair<DType, const void*>>{{DType::kF32, table.data()},
                                                      {DType::kBF16, brain.data()},
                                                      {DType::kF16, half.data()}}) {
        LanePool lanes(2);
        const auto ops = make_cpu_decode_ops(isa, lanes);
        std::vector<float> out(4 * channels), expected(4 * channels);
        ops->embed({tokens, at, data, type, position_table, out.data(), channels});
        reference->embed({tokens, at, data, type, position_table, expected.data(), channels});
        CHECK(out == expected);
      }
}

TEST_CASE("cross-entropy agrees with the reference to float precision") {
  const auto reference = make_reference_decode_ops();
  for (Isa isa : runnable_isas())
    for (int vocab : {1, 5, 16, 1000, 50257}) {
      const int rows = 3, ld = vocab + 2;
      const auto logits = normal_floats(static_cast<size_t>(rows * ld), 50, 4.0f);
      const std::vector<int32_t> targets = {0, vocab - 1, vocab / 2};
      LanePool lanes(2);
      const auto ops = make_cpu_decode_ops(isa, lanes);
      std::vector<double> out(3), expected(3);
      ops->cross_entropy(logits.data(), rows, vocab, ld, targets, out.data());
      reference->cross_entropy(logits.data(), rows, vocab, ld, targets, expected.data());
      for (size_t r = 0; r < 3; r++) CHECK(std::abs(out[r] - expected[r]) <= 1e-6);
    }
}

TEST_CASE("a target of -1 is not counted") {
  LanePool lanes(1);
  const auto ops = make_cpu_decode_ops(best_isa(), lanes);
  const std::vector<float> logits = {1, 2, 3, 4};
  const std::vector<int32_t> targets = {-1, 1};
  std::vector<double> out(2);
  ops->cross_entropy(logits.data(), 2, 2, 2, targets, out.data());
  CHECK(out[0] == 0);
  CHECK(out[1] == doctest::Approx(std::log1p(std::exp(-1.0))));
}

}  // namespace
}  // namespace fastserve
