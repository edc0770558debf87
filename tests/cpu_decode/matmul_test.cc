#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "cases.h"
#include "cpu/decode/decode_ops.h"
#include "cpu/reference/reference_ops.h"

namespace fastserve {
namespace {

/// One product with everything that may come with it.
struct Product {
  MatrixCase matrix;
  DecodeEpilogue epilogue = DecodeEpilogue::kStore;
  bool bias = false;
  bool norm = false;
  NormKind kind = NormKind::kRmsNorm;
  int rows = 5;
  std::vector<int32_t> gather = {};

  int columns() const { return matrix.swiglu ? matrix.out / 2 : matrix.out; }
  int ld() const { return columns() + 3; }

  /// out [rows, ld()]; columns past columns() keep their value.
  std::vector<float> run(DecodeOps& ops, const DecodeMatrix& w, const std::vector<float>& x,
                         int rows) const {
    const auto weight = normal_floats(static_cast<size_t>(matrix.in), 91);
    const auto shift = normal_floats(static_cast<size_t>(matrix.in), 92);
    const auto biases = normal_floats(static_cast<size_t>(matrix.out), 93);
    const DecodeNorm with{kind, weight.data(),
                          kind == NormKind::kLayerNorm ? shift.data() : nullptr, 1e-5f};
    auto out = normal_floats(static_cast<size_t>(rows * ld()), 94);
    DecodeMatmul op{};
    op.weight = &w;
    op.x = x.data();
    op.rows = rows;
    op.x_ld = matrix.in + 2;
    op.gather = gather;
    op.norm = norm ? &with : nullptr;
    op.bias = bias ? biases.data() : nullptr;
    op.epilogue = epilogue;
    op.out = out.data();
    op.out_ld = ld();
    ops.matmul(op);
    return out;
  }
  std::vector<float> inputs(int rows) const {
    return normal_floats(static_cast<size_t>(rows * (matrix.in + 2)), 95);
  }
};

/// What float sums, and bfloat16 or quantised activations, may move an output by: outputs are about
/// 1, their addends about 1/sqrt(in).
double tolerance(const Product& p, Isa isa) {
  if (p.matrix.format == WeightFormat::kBFloat16 && isa == Isa::kAvx512Bf16)
    return 4.0 * 0x1p-9;  // activations rounded to 8 bits, four deviations
  // A normalised value may round to the next of 255 steps: one step of one input.
  const double step = 3.0 / 127 * 4 / std::sqrt(static_cast<double>(p.matrix.in));
  if (is_quantised(p.matrix.format) && p.norm) return step;
  return 2e-6;
}

void compare(const Product& p, Isa isa) {
  LanePool lanes(2);
  const auto ops = make_cpu_decode_ops(isa, lanes);
  const auto reference = make_reference_decode_ops();
  const auto w = p.matrix.make(*ops), expected_w = p.matrix.make(*reference);
  const auto x = p.inputs(p.rows);
  const auto out = p.run(*ops, *w, x, p.rows);
  const auto expected = p.run(*reference, *expected_w, x, p.rows);
  double worst = 0;
  for (size_t i = 0; i < out.size(); i++) {
    const double scale = 1 + std::abs(static_cast<double>(expected[i]));
    worst = std::max(worst, std::abs(static_cast<double>(out[i]) - expected[i]) / scale);
  }
  INFO(isa_name(isa), " ", weight_format_name(p.matrix.format), " [", p.matrix.out, ", ",
       p.matrix.in, "] rows ", p.rows, " epilogue ", static_cast<int>(p.epilogue));
  CHECK(worst <= tolerance(p, isa));
}

TEST_CASE("x W^T agrees with the reference in every format, on every path, at any shape") {
  for (Isa isa : runnable_isas())
    for (WeightFormat format : kFormats) {
      compare({MatrixCase({64}, 128, format, false, 1), DecodeEpilogue::kStore}, isa);
      compare({MatrixCase({1}, 1, format, false, 2), DecodeEpilogue::kStore}, isa);
      compare({MatrixCase({37, 5, 5}, 203, format, false, 3), DecodeEpilogue::kAdd, true}, isa);
      compare({MatrixCase({130}, 300, format, false, 4), DecodeEpilogue::kGelu, true}, isa);
      compare({MatrixCase({29, 29}, 77, format, true, 5), DecodeEpilogue::kSwiGlu, true}, isa);
      compare({MatrixCase({96, 96}, 256, format, true, 6), DecodeEpilogue::kSwiGlu}, isa);
    }
}

TEST_CASE("every number of rows takes a tile of its own and agrees with the reference") {
  for (Isa isa : runnable_isas())
    for (WeightFormat format : kFormats)
      for (int rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 33}) {
        Product p{MatrixCase({70}, 160, format, false, 7)};
        p.rows = rows;
        compare(p, isa);
      }
}

TEST_CASE("a norm in front and gathered rows agree with the reference") {
  for (Isa isa : runnable_isas())
    for (WeightFormat format : kFormats)
      for (NormKind kind : {NormKind::kRmsNorm, NormKind::kLayerNorm})
        for (int in : {64, 91, 320}) {
          Product p{MatrixCase({48}, in, format, false, 8), DecodeEpilogue::kStore, false, true,
                    kind};
          compare(p, isa);
          p.gather = {4, 0, 3};
          const auto x = p.inputs(5);
          LanePool lanes(1);
          const auto ops = make_cpu_decode_ops(isa, lanes);
          const auto w = p.matrix.make(*ops);
          const auto some = p.run(*ops, *w, x, 3);
          p.gather = {};
          const auto all = p.run(*ops, *w, x, 5);
          const auto n = static_cast<size_t>(p.ld());
          for (size_t c = 0; c < static_cast<size_t>(p.columns()); c++) {
            REQUIRE(some[c] == all[4 * n + c]);
            REQUIRE(some[n + c] == all[c]);
            REQUIRE(some[2 * n + c] == all[3 * n + c]);
          }
        }
}

TEST_CASE("a row's bits do not depend on the batch, on its place in it, or on the lanes") {
  for (Isa isa : runnable_isas())
    for (WeightFormat format : kFormats)
      for (DecodeEpilogue epilogue : {DecodeEpilogue::kStore, DecodeEpilogue::kSwiGlu}) {
        const bool swiglu = epilogue == DecodeEpilogue::kSwiGlu;
        const Product p{MatrixCase({53, 53}, 297, format, swiglu, 9), epilogue, true, true};
        const auto width = static_cast<size_t>(p.matrix.in + 2), ld = static_cast<size_t>(p.ld());
        const auto x = p.inputs(31);
        std::vector<float> alone;
        {
          LanePool lanes(1);
          const auto ops = make_cpu_decode_ops(isa, lanes);
          const auto w = p.matrix.make(*ops);
          for (size_t r = 0; r < 31; r++) {
            const std::vector<float> row(x.begin() + static_cast<ptrdiff_t>(r * width),
                                         x.begin() + static_cast<ptrdiff_t>((r + 1) * width));
            const auto out = p.run(*ops, *w, row, 1);
            alone.insert(alone.end(), out.begin(), out.end());
          }
        }
        for (int pool : {1, 2, 3}) {
          LanePool lanes(pool);
          const auto ops = make_cpu_decode_ops(isa, lanes);
          const auto w = p.matrix.make(*ops);
          for (size_t rows = 1; rows <= 31; rows++) {
            const size_t from = 31 - rows;
            const std::vector<float> some(x.begin() + static_cast<ptrdiff_t>(from * width),
                                          x.end());
            const auto out = p.run(*ops, *w, some, static_cast<int>(rows));
            INFO(isa_name(isa), " ", weight_format_name(format), " rows ", rows, " lanes ", pool);
            for (size_t r = 0; r < rows; r++)
              REQUIRE(std::memcmp(&out[r * ld], &alone[(from + r) * ld],
                                  static_cast<size_t>(p.columns()) * sizeof(float)) == 0);
          }
        }
      }
}

TEST_CASE("more rows than are prepared at once give the same bits") {
  const Product p{MatrixCase({40}, 64, WeightFormat::kInt8Group32, false, 10)};
  LanePool lanes(2);
  const auto ops = make_cpu_decode_ops(best_isa(), lanes);
  const auto w = p.matrix.make(*ops);
  const auto x = p.inputs(1100);
  const auto all = p.run(*ops, *w, x, 1100);
  const auto width = static_cast<size_t>(p.matrix.in + 2), ld = static_cast<size_t>(p.ld());
  for (size_t r : {size_t{0}, size_t{511}, size_t{512}, size_t{1099}}) {
    const std::vector<float> row(x.begin() + static_cast<ptrdiff_t>(r * width),
                                 x.begin() + static_cast<ptrdiff_t>((r + 1) * width));
    const auto one = p.run(*ops, *w, row, 1);
    CHECK(std::equal(one.begin(), one.begin() + p.columns(),
                     all.begin() + static_cast<ptrdiff_t>(r * ld)));
  }
}

TEST_CASE("a NaN or an infinity in a row shows in all its outputs and in no other row's") {
  for (Isa isa : runnable_isas())
    for (WeightFormat format : kFormats)
      for (float bad : {std::nanf(""), INFINITY}) {
        const Product p{MatrixCase({20}, 150, format, false, 11)};
        LanePool lanes(1);
        const auto ops = make_cpu_decode_ops(isa, lanes);
        const auto w = p.matrix.make(*ops);
        auto x = p.inputs(3);
        x[static_cast<size_t>(p.matrix.in + 2) + 60] = bad;
        const auto out = p.run(*ops, *w, x, 3);
        INFO(isa_name(isa), " ", weight_format_name(format));
        const auto ld = static_cast<size_t>(p.ld());
        for (size_t c = 0; c < 20; c++) {
          CHECK(std::isfinite(out[c]));
          CHECK_FALSE(std::isfinite(out[ld + c]));
          CHECK(std::isfinite(out[2 * ld + c]));
        }
      }
}

TEST_CASE("a matrix whose parts contradict its shape is refused") {
  LanePool lanes(1);
  const auto ops = make_cpu_decode_ops(best_isa(), lanes);
  const std::vector<float> values(12);
  DecodeMatrixSource::Part part{values, nullptr, 3};
  DecodeMatrixSource source;
  source.parts = {&part, 1};
  source.in = 5;
  source.format = WeightFormat::kFloat32;
  CHECK(ops->make_matrix(source).error().code == ErrorCode::kInvalidArgument);
  source.in = 4;
  CHECK(ops->make_matrix(source).ok());
  source.format = WeightFormat::kInt8Group32;
  CHECK(ops->make_matrix(source).error().code == ErrorCode::kInvalidArgument);
  source.format = WeightFormat::kFloat32;
  source.swiglu = true;
  CHECK(ops->make_matrix(source).error().code == ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace fastserve
