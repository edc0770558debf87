#include <doctest/doctest.h>

#include <limits>

#include "base/rng.h"
#include "model/quantised.h"

using namespace fastserve;

namespace {

constexpr WeightFormat kQuantised[] = {WeightFormat::kInt8Row, WeightFormat::kInt8Group32,
                                       WeightFormat::kInt8Group128, WeightFormat::kInt4Group32,
                                       WeightFormat::kInt4Group128};

QuantisedMatrix random_matrix(WeightFormat format, int rows, int cols) {
  QuantisedMatrix matrix;
  matrix.format = format;
  matrix.rows = rows;
  matrix.cols = cols;
  Rng rng(3);
  for (int i = 0; i < rows * cols; i++) {
    const int code = format_bits(format) == 8 ? static_cast<int>(rng.below(255)) - 127
                                              : static_cast<int>(rng.below(15)) + 1;
    matrix.codes.push_back(static_cast<uint8_t>(code));
  }
  for (int i = 0; i < rows * matrix.groups(); i++)
    matrix.scales.push_back(0.5f + static_cast<float>(i));
  return matrix;
}

}  // namespace

TEST_CASE("every weight format's name parses to itself, and an unknown one lists the choices") {
  for (int i = 0; i <= static_cast<int>(WeightFormat::kInt4Group128); i++) {
    const auto format = static_cast<WeightFormat>(i);
    CHECK(*parse_weight_format(weight_format_name(format)) == format);
    CHECK(is_quantised(format) == (format_bits(format) < 16));
  }
  CHECK(parse_weight_format("int5").error().message().find("int4-g128") != std::string::npos);
}

TEST_CASE("a quantised matrix survives the way through a bundle, odd widths and short groups too") {
  for (const WeightFormat format : kQuantised)
    for (const int cols : {1, 31, 32, 130, 257}) {
      CAPTURE(weight_format_name(format));
      CAPTURE(cols);
      const QuantisedMatrix matrix = random_matrix(format, 3, cols);
      TensorMap tensors;
      add_quantised(tensors, "w", matrix);
      const auto back = read_quantised(tensors, "w", format, cols);
      if (!back.ok()) FAIL(back.error().message());
      CHECK(back->codes == matrix.codes);
      CHECK(back->scales == matrix.scales);
      CHECK((back->rows == 3 && back->cols == cols));
    }
}

TEST_CASE("a row dequantises to code times scale, group by group") {
  QuantisedMatrix matrix = random_matrix(WeightFormat::kInt4Group32, 2, 40);
  std::vector<float> row(40);
  matrix.dequantise_row(1, row);
  CHECK(row[0] == static_cast<float>(matrix.codes[40] - 8) * 2.5f);
  CHECK(row[39] == static_cast<float>(matrix.codes[79] - 8) * 3.5f);
  matrix = random_matrix(WeightFormat::kInt8Row, 2, 40);
  matrix.dequantise_row(1, row);
  CHECK(row[39] == static_cast<float>(static_cast<int8_t>(matrix.codes[79])) * 1.5f);
}

TEST_CASE("quantised tensors that contradict their format are refused by name") {
  TensorMap tensors("here");
  CHECK(read_quantised(tensors, "w", WeightFormat::kInt8Row)
            .error()
            .message()
            .find("here: the tensor \"w.codes\" is missing") == 0);
  add_quantised(tensors, "w", random_matrix(WeightFormat::kInt8Group32, 3, 64));
  CHECK(read_quantised(tensors, "w", WeightFormat::kInt8Group32).ok());
  CHECK(read_quantised(tensors, "w", WeightFormat::kInt8Group128).error().code ==
        ErrorCode::kCorrupt);
  CHECK(read_quantised(tensors, "w", WeightFormat::kInt4Group32).error().code ==
        ErrorCode::kCorrupt);
  CHECK(read_quantised(tensors, "w", WeightFormat::kInt8Group32, 63).error().code ==
        ErrorCode::kCorrupt);
  QuantisedMatrix bad = random_matrix(WeightFormat::kInt8Group32, 3, 64);
  bad.codes[5] = 0x80;
  add_quantised(tensors, "w", bad);
  CHECK(read_quantised(tensors, "w", WeightFormat::kInt8Group32)
            .error()
            .what.find("outside the range of int8-g32") != std::string::npos);
  bad.codes[5] = 0;
  bad.scales[1] = std::numeric_limits<float>::infinity();
  add_quantised(tensors, "w", bad);
  CHECK(read_quantised(tensors, "w", WeightFormat::kInt8Group32).error().what.find("not finite") !=
        std::string::npos);
}
