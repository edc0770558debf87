#include "compress/quantisers.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <thread>

#include "base/rng.h"
#include "compress/quant_parity.h"
#include "tests/model/reference_files.h"

using namespace fastserve;

namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kInt8Row, WeightFormat::kInt8Group32,
                                     WeightFormat::kInt8Group128, WeightFormat::kInt4Group32,
                                     WeightFormat::kInt4Group128};

std::vector<float> normals(size_t n, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> out(n);
  for (float& x : out) x = static_cast<float>(rng.normal());
  return out;
}

}  // namespace

TEST_CASE("every recorded code, scale, block, mask and output error is met") {
  const auto checks = check_quantisation(reference_directory() / "quant");
  if (!checks.ok()) FAIL(checks.error().message());
  for (const QuantisationCheck& check : *checks)
    CHECK_MESSAGE(check.passed, check.quantity << " " << check.error);
  // Two matrices: 9 exact tensors of formats, 10 of groups and the packed codes, 5 masks, 13
  // errors; X's norms.
  CHECK(checks->size() >= 60);
}

TEST_CASE("every format's error on normal weights is half a step, whatever the width") {
  for (const WeightFormat format : kFormats)
    for (const int cols : {1, 31, 64, 200}) {
      CAPTURE(weight_format_name(format));
      CAPTURE(cols);
      const std::vector<float> weights = normals(static_cast<size_t>(3 * cols), 9);
      const auto matrix = quantise(weights, 3, cols, format, "w");
      REQUIRE(matrix.ok());
      const int group = format_group(format) == 0 ? cols : format_group(format);
      std::vector<float> row(static_cast<size_t>(cols));
      for (int r = 0; r < 3; r++) {
        matrix->dequantise_row(r, row);
        for (int c = 0; c < cols; c++) {
          const float w = weights[static_cast<size_t>(r * cols + c)];
          const float scale =
              std::fabs(matrix->scales[static_cast<size_t>(r * matrix->groups() + c / group)]);
          // q4_0 reaches -8 but only +7: the weight opposite its largest is cut by up to a step.
          // f16 scales add 2^-11.
          const float bound = format == WeightFormat::kInt4Group32 ? 1.0f : 0.5f;
          CHECK(std::fabs(row[static_cast<size_t>(c)] - w) <=
                scale * bound + std::fabs(w) * 0x1p-10f + 1e-7f);
        }
      }
    }
}

TEST_CASE("rows of zeros and of tiny weights become zeros, not NaN") {
  for (const WeightFormat format : kFormats)
    for (const float value : {0.0f, 1e-44f, -1e-39f}) {
      const std::vector<float> weights(40, value);
      const auto matrix = quantise(weights, 1, 40, format, "w");
      REQUIRE(matrix.ok());
      std::vector<float> row(40);
      matrix->dequantise_row(0, row);
      for (const float x : row) CHECK(std::fabs(x) <= 1e-38f);
    }
}

TEST_CASE("a weight that is not finite, or too large for an f16 scale, is refused by name") {
  std::vector<float> weights = normals(64, 1);
  weights[40] = std::numeric_limits<float>::quiet_NaN();
  for (const WeightFormat format : kFormats) {
    const auto matrix = quantise(weights, 1, 64, format, "layers.3.up");
    REQUIRE(!matrix.ok());
    CHECK(matrix.error().where == "layers.3.up");
  }
  weights[40] = 1e30f;
  CHECK(!quantise(weights, 1, 64, WeightFormat::kInt8Group32, "w").ok());
  CHECK(quantise(weights, 1, 64, WeightFormat::kInt8Row, "w").ok());
}

TEST_CASE("threads do not change the codes") {
  const std::vector<float> weights = normals(300 * 70, 4);
  const ParallelFor threads = [](int64_t items, const std::function<void(int64_t)>& body) {
    std::vector<std::thread> all;
    for (int64_t i = items; i-- > 0;) all.emplace_back([&body, i] { body(i); });
    for (std::thread& thread : all) thread.join();
  };
  for (const WeightFormat format : kFormats) {
    const auto one = quantise(weights, 300, 70, format, "w"),
               many = quantise(weights, 300, 70, format, "w", threads);
    REQUIRE((one.ok() && many.ok()));
    CHECK(one->codes == many->codes);
    CHECK(one->scales == many->scales);
  }
}

TEST_CASE("asymmetric groups hold zero exactly and symmetric ones are centred on it") {
  std::vector<float> weights = normals(256, 2);
  for (float& w : weights) w = std::fabs(w) + 1;
  weights[7] = 0;
  const GroupCodes asymmetric = quantise_groups(weights, 1, 256, 3, 128, false);
  CHECK(asymmetric.dequantised()[7] == 0.0f);
  CHECK(asymmetric.zeros[0] == 0.0);
  const GroupCodes symmetric = quantise_groups(weights, 1, 256, 3, 128, true);
  for (const int16_t code : symmetric.codes) CHECK(std::abs(code) <= 3);
  CHECK(quantise_groups(std::vector<float>(5, 0.0f), 1, 5, 4, 128, false).dequantised() ==
        std::vector<float>(5, 0.0f));
}
