// The three products of a linear layer: shapes, and what they are run on.
#pragma once

#include <fmt/format.h>

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

    Array gelu = unwritten_compute(precision, reference::at(s.rows, s.out));
    Array slope = unwritten_compute(precision, reference::at(s.rows, s.out));
    forward(MatmulEpilogue::kGelu, biased, gelu, s.out, nullptr, slope.data());
    outputs.push_back(compute_output("gelu" + with, precision, gelu, s.in, roundings));
    outputs.push_back(compute_output("gelu slope" + with, precision, slope, s.in, roundings));
    forward(MatmulEpilogue::kGelu, biased, gelu, s.out, nullptr, nullptr);
    outputs.push_back(
        compute_output("gelu without slope" + with, precision, gelu, s.in, roundings));

    Array silu = unwritten_compute(precision, reference::at(s.rows, s.out / 2));
    forward(MatmulEpilogue::kSwiGlu, biased, silu, s.out / 2, nullptr, slope.data());
    outputs.push_back(compute_output("swiglu" + with, precision, silu, s.in, roundings));
    outputs.push_back(compute_output("swiglu slope" + with, precision, slope, s.in, roundings));
    forward(MatmulEpilogue::kSwiGlu, biased, silu, s.out / 2, nullptr, nullptr);
    outputs.push_back(
        compute_output("swiglu without slope" + with, precision, silu, s.in, roundings));
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
  const double size = std::sqrt(static_cast<double>(s.out) / s.in);
  Outputs outputs;
  Array stored = unwritten_compute(precision, reference::at(s.rows, dx_ld));
  ops.matmul_backward_input({matrix.get(), dy.data(), s.rows, dy_ld, InputGradEpilogue::kStore,
                             stored.data(), dx_ld, nullptr, 1});
  outputs.push_back(compute_output("dx", precision, stored, s.out));
  Array floats = unwritten_floats(reference::at(s.rows, dx_ld));
  ops.matmul_backward_input({matrix.get(), dy.data(), s.rows, dy_ld, InputGradEpilogue::kStoreFloat,
                             floats.data(), dx_ld, nullptr, 1});
  outputs.push_back(float_output("dx float", floats, s.out));
  for (const int parts : {1, 2}) {
    const size_t n = reference::at(s.rows, parts * s.in);
    Array slope = random_compute(rng, precision, n, size), dx = unwritten_compute(precision, n);
    ops.matmul_backward_input({matrix.get(), dy.data(), s.rows, dy_ld,
                               InputGradEpilogue::kTimesSlope, dx.data(), parts * s.in,
                               slope.data(), parts});
    outputs.push_back(compute_output("dx times slope", precision, dx, s.out));
  }
  return outputs;
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
