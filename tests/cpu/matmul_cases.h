// The three products of a linear layer: shapes, and what they are run on.
#pragma once

#include <fmt/format.h>

#include <tuple>

#include "tests/cpu/op_harness.h"

namespace fastserve::harness::matmul_cases {

struct MatmulShape {
  int rows, out, in;
  std::string text() const { return fmt::format("[{}, {}] to {}", rows, in, out); }
};

/// Tails of every tile, one row, one column, past the depth at which kernels block a sum, and more
/// rows than a shared cache holds of it.
inline const std::vector<MatmulShape> kShapes = {
    {1, 2, 1},     {2, 4, 3},      {3, 6, 7},      {6, 64, 64},   {7, 66, 63},   {13, 48, 130},
    {64, 192, 64}, {33, 130, 100}, {70, 18, 200},  {5, 96, 3100}, {4, 3100, 40}, {130, 34, 66},
    {12, 512, 17}, {1, 200, 256},  {25, 256, 128}, {300, 40, 72}, {700, 2, 3100}};

inline std::unique_ptr<TrainMatrix> packed(TrainOps& ops, const MatmulShape& s, Array& masters) {
  auto matrix = ops.make_matrix(s.out, s.in);
  for (int row = 0; row < s.out; row += 64)
    ops.pack(*matrix, row, std::min(64, s.out - row), masters.floats());
  return matrix;
}

inline Array weights(Rng& rng, Precision precision, const MatmulShape& s) {
  return random_floats(rng, reference::at(s.out, s.in), 1.0 / std::sqrt(s.in), precision);
}

/// `roundings`: of what is stored; two where a product or its bias is rounded on the way.
inline Outputs run_forward_rounded(TrainOps& ops, const MatmulShape& s, double roundings) {
  Rng rng(21);
  const Precision precision = ops.precision();
  const int x_ld = s.in + 5, out_ld = s.out + 3;
  Array x = random_compute(rng, precision, reference::at(s.rows, x_ld));
  Array masters = weights(rng, precision, s);
  Array bias = random_floats(rng, static_cast<size_t>(s.out));
  const auto matrix = packed(ops, s, masters);
  Outputs outputs;
  const auto forward = [&](MatmulEpilogue epilogue, bool biased, Array& out, int ld,
                           const float* residual, void* slope) {
    ops.matmul_forward({matrix.get(), x.data(), s.rows, x_ld, biased ? bias.floats() : nullptr,
                        epilogue, out.data(), ld, residual, slope});
  };
  for (const bool biased : {false, true}) {
    const std::string with = biased ? " + bias" : "";
    Array stored = unwritten_compute(precision, reference::at(s.rows, out_ld));
    forward(MatmulEpilogue::kStore, biased, stored, out_ld, nullptr, nullptr);
    outputs.push_back(compute_output("store" + with, precision, stored, s.in, roundings));

    Array floats = unwritten_floats(reference::at(s.rows, out_ld));
    forward(MatmulEpilogue::kStoreFloat, biased, floats, out_ld, nullptr, nullptr);
    outputs.push_back(float_output("store float" + with, floats, s.in));

    Array residual = random_floats(rng, reference::at(s.rows, out_ld));
    Array sum = unwritten_floats(reference::at(s.rows, out_ld));
    forward(MatmulEpilogue::kAddResidual, biased, sum, out_ld, residual.floats(), nullptr);
    outputs.push_back(float_output("residual" + with, sum, s.in));
    forward(MatmulEpilogue::kAddResidual, biased, residual, out_ld, residual.floats(), nullptr);
    outputs.push_back(float_output("residual in place" + with, residual, s.in));

    for (const auto& [name, epilogue, width] : {std::tuple{"gelu", MatmulEpilogue::kGelu, s.out},
                                                {"swiglu", MatmulEpilogue::kSwiGlu, s.out / 2}}) {
      Array out = unwritten_compute(precision, reference::at(s.rows, width));
      Array slope = unwritten_compute(precision, reference::at(s.rows, s.out));
      forward(epilogue, biased, out, width, nullptr, slope.data());
      CHECK(slope.guard_intact());
      outputs.push_back(compute_output(name + with, precision, out, s.in, roundings));
      forward(epilogue, biased, out, width, nullptr, nullptr);
      outputs.push_back(
          compute_output(name + (" without slope" + with), precision, out, s.in, roundings));
    }
  }
  return outputs;
}

inline Outputs run_forward(TrainOps& ops, const MatmulShape& s) {
  return run_forward_rounded(ops, s, 1);
}

inline Outputs run_backward_input(TrainOps& ops, const MatmulShape& s) {
  Rng rng(22);
  const Precision precision = ops.precision();
  const int dy_ld = (s.out + 63) / 64 * 64, dx_ld = s.in + 3;
  Array dy = random_compute(rng, precision, reference::at(s.rows, dy_ld));
  for (int r = 0; r < s.rows; ++r)  // as the classifier leaves what is past the vocabulary
    for (int c = s.out; c < dy_ld; ++c)
      reference::Compute(precision).store(dy.data(), reference::at(r, dy_ld, c), 0);
  Array masters = weights(rng, precision, s);
  const auto matrix = packed(ops, s, masters);
  Outputs outputs;
  Array stored = unwritten_compute(precision, reference::at(s.rows, dx_ld));
  ops.matmul_backward_input({matrix.get(), dy.data(), s.rows, dy_ld, InputGradEpilogue::kStore,
                             stored.data(), dx_ld, nullptr, 1});
  outputs.push_back(compute_output("dx", precision, stored, s.out));
  Array floats = unwritten_floats(reference::at(s.rows, dx_ld));
  ops.matmul_backward_input({matrix.get(), dy.data(), s.rows, dy_ld, InputGradEpilogue::kStoreFloat,
                             floats.data(), dx_ld, nullptr, 1});
  outputs.push_back(float_output("dx float", floats, s.out));
  return outputs;
}

/// What is left of sums of columns, added to numbers between -4 and 4, without the columns as they
/// are stored: the error is that of float sums alone, whose size is the floor.
inline Output sums_less_columns(std::string name, Precision precision, Array& sums, Array& stored,
                                int rows) {
  CHECK_MESSAGE(sums.guard_intact(), name << " was written past its end");
  const reference::Compute compute(precision);
  const int cols = static_cast<int>(sums.size());
  std::vector<double> left;
  double most = 0;
  for (int c = 0; c < cols; ++c) {
    left.push_back(static_cast<double>(sums.floats()[c]));
    most = std::max(most, std::abs(left.back()));
    for (int r = 0; r < rows; ++r)
      left.back() -= compute.load(stored.data(), reference::at(r, cols, c));
  }
  return double_output(std::move(name), std::move(left), rows, most);
}

/// Forward to an activation of s.in neurons, and back to it through the matrix behind it. What
/// forward leaves for backward is the device's own; what comes of it is not.
///
/// `roundings`: of what is stored, slope and gradient; one more where the product is, too. A slope
/// that is made of a rounded number is off by that number's error times |p gelu''(p)| or
/// |g silu''(g)|, less than 0.33 each: less than a rounding of the slope to the size of dy W.
inline Outputs run_activation_rounded(TrainOps& ops, const MatmulShape& s, double roundings) {
  Rng rng(24);
  constexpr int kFrom = 24;
  const Precision precision = ops.precision();
  Array x = random_compute(rng, precision, reference::at(s.rows, kFrom));
  Array dy = random_compute(rng, precision, reference::at(s.rows, s.out));
  Array masters = weights(rng, precision, {s.rows, s.out, s.in});
  const auto matrix = packed(ops, s, masters);
  Outputs outputs;
  for (const auto& [name, epilogue, parts] :
       {std::tuple{"gelu", MatmulEpilogue::kGelu, 1}, {"swiglu", MatmulEpilogue::kSwiGlu, 2}})
    for (const bool biased : {false, true}) {
      const MatmulShape up{s.rows, parts * s.in, kFrom};
      Array up_masters = weights(rng, precision, up);
      const auto up_matrix = packed(ops, up, up_masters);
      Array bias = random_floats(rng, static_cast<size_t>(up.out));
      const float* const added = biased ? bias.floats() : nullptr;
      const size_t n = reference::at(s.rows, up.out);
      Array out = unwritten_compute(precision, reference::at(s.rows, s.in));
      Array slope = unwritten_compute(precision, n), dx = unwritten_compute(precision, n);
      Array dbias = random_floats(rng, static_cast<size_t>(up.out));
      ops.matmul_forward({up_matrix.get(), x.data(), s.rows, kFrom, added, epilogue, out.data(),
                          s.in, nullptr, slope.data()});
      ops.matmul_backward_input({matrix.get(), dy.data(), s.rows, s.out,
                                 InputGradEpilogue::kTimesSlope, dx.data(), up.out, slope.data(),
                                 parts, added, ops.sums_dx() ? dbias.floats() : nullptr});
      if (!ops.sums_dx()) {
        Array dweight = unwritten_floats(reference::at(up.out, kFrom));
        ops.matmul_backward_weight({dx.data(), x.data(), s.rows, up.out, kFrom, up.out, kFrom,
                                    dweight.floats(), dbias.floats(), false});
      }
      const std::string which = std::string(" through ") + name + (biased ? " + bias" : "");
      const int terms = s.out + kFrom;
      outputs.push_back(compute_output("dx" + which, precision, dx, terms, roundings));
      outputs.push_back(sums_less_columns("dbias" + which, precision, dbias, dx, s.rows));
    }
  return outputs;
}

inline Outputs run_activation(TrainOps& ops, const MatmulShape& s) {
  return run_activation_rounded(ops, s, 2);
}

inline Outputs run_backward_weight(TrainOps& ops, const MatmulShape& s) {
  Rng rng(23);
  const Precision precision = ops.precision();
  const int dy_ld = s.out + 7, x_ld = s.in + 2;
  Array dy = random_compute(rng, precision, reference::at(s.rows, dy_ld));
  Array x = random_compute(rng, precision, reference::at(s.rows, x_ld));
  Outputs outputs;
  for (const bool accumulate : {false, true}) {
    Array dweight = random_floats(rng, reference::at(s.out, s.in));
    Array dbias = random_floats(rng, static_cast<size_t>(s.out));
    ops.matmul_backward_weight({dy.data(), x.data(), s.rows, s.out, s.in, dy_ld, x_ld,
                                dweight.floats(), accumulate ? dbias.floats() : nullptr,
                                accumulate});
    outputs.push_back(float_output(accumulate ? "dweight +=" : "dweight =", dweight, s.rows));
    outputs.push_back(float_output("dbias", dbias, s.rows));
  }
  return outputs;
}

/// The transposed table: sums over rows pass the blocking depth too, and gradients are large enough
/// to be written past the caches.
inline std::vector<MatmulShape> weight_shapes() {
  std::vector<MatmulShape> shapes = kShapes;
  shapes.push_back({3100, 20, 18});
  shapes.push_back({6, 320, 512});
  shapes.push_back({5, 1000, 144});
  return shapes;
}

}  // namespace fastserve::harness::matmul_cases
