// The classifier's loss and the flat operations: shapes, and what they are run on.
#pragma once

#include <fmt/format.h>

#include "tests/cpu/op_harness.h"

namespace fastserve::harness::loss_cases {

struct LossShape {
  int rows, vocab, in;
  double spread;  ///< of the logits
  std::string text() const { return fmt::format("[{}, {}] over {}", rows, in, vocab); }
};

inline const std::vector<LossShape> kLossShapes = {
    {1, 2, 3, 1},     {1, 64, 16, 1},    {5, 65, 128, 3},   {12, 512, 64, 1}, {9, 1000, 33, 2},
    {130, 97, 16, 1}, {37, 256, 64, 30}, {300, 130, 24, 1}, {70, 4999, 8, 1}};

inline Outputs run_loss(TrainOps& ops, const LossShape& s) {
  Rng rng(41);
  const Precision precision = ops.precision();
  Array x = random_compute(rng, precision, reference::at(s.rows, s.in));
  Array masters = random_floats(rng, reference::at(s.vocab, s.in),
                                s.spread / std::sqrt(double(s.in)), precision);
  const auto head = ops.make_matrix(s.vocab, s.in);
  ops.pack(*head, 0, s.vocab, masters.floats());
  std::vector<int32_t> targets;
  for (int r = 0; r < s.rows; ++r)
    targets.push_back(r % 4 == 1 ? -1
                                 : static_cast<int32_t>(rng.below(static_cast<uint64_t>(s.vocab))));
  const int ld = (s.vocab + 63) / 64 * 64;
  const size_t rows = static_cast<size_t>(s.rows);
  Array dlogits = unwritten_compute(precision, reference::at(s.rows, ld));
  Array losses(rows, sizeof(double)), alone(rows, sizeof(double));
  const auto doubles = [](Array& array) { return static_cast<double*>(array.data()); };
  const auto values = [&](Array& array) {
    return std::vector<double>(doubles(array), doubles(array) + array.size());
  };
  std::fill_n(doubles(losses), rows, 77.0);
  std::fill_n(doubles(alone), rows, 77.0);
  // A scale that fp16 holds: probabilities of a large vocabulary are subnormal in half without one.
  const float scale = 512.0f / static_cast<float>(s.rows);
  ops.classifier_loss(
      {head.get(), x.data(), s.rows, targets, doubles(losses), dlogits.data(), ld, scale});
  ops.classifier_loss({head.get(), x.data(), s.rows, targets, doubles(alone), nullptr, ld, scale});
  const double terms = (s.in + s.vocab) * s.spread * s.spread;
  return {double_output("losses", values(losses), terms, s.spread),
          double_output("losses alone", values(alone), terms, s.spread),
          compute_output("dlogits", precision, dlogits, terms)};
}

/// Where the gradient is wanted, logits are stored in the training's precision: each is off by half
/// of unit_roundoff() times itself, and the largest of them are some 4.5 times `spread`. So much a
/// loss may be off, whose target's logit is exact, and a probability twice as much of itself.
inline Outputs run_loss_of_rounded(TrainOps& ops, const LossShape& s) {
  Outputs outputs = run_loss(ops, s);
  if (ops.precision() == Precision::kFloat32) return outputs;
  const double largest = 4.5 * s.spread;
  outputs[0].roundings = 0.25;  // the harness allows 2 unit_roundoff() for each
  outputs[0].floor = largest;
  outputs[2].roundings += largest / 2;
  return outputs;
}

struct FlatShape {
  size_t n;
  std::string text() const { return std::to_string(n); }
};
inline const std::vector<FlatShape> kFlatShapes = {{1}, {7}, {16}, {64}, {100}, {1031}, {70000}};

inline Outputs run_adamw(TrainOps& ops, const FlatShape& s) {
  Rng rng(42);
  Array param = random_floats(rng, s.n), m = random_floats(rng, s.n, 0.1);
  Array v = random_floats(rng, s.n, 0.1), grad = random_floats(rng, s.n);
  for (size_t i = 0; i < s.n; ++i) v.floats()[i] = std::abs(v.floats()[i]);
  if (s.n > 5) grad.floats()[5] = m.floats()[5] = v.floats()[5] = 0;  // epsilon alone divides
  for (const int64_t step : {3, 4})
    ops.adamw({param.floats(), m.floats(), v.floats(), grad.floats(), s.n, 1e-2f, 0.9f, 0.95f,
               1e-8f, 0.1f, step, 0.5f});
  return {float_output("param", param, 1), float_output("m", m, 1), float_output("v", v, 1)};
}

inline Outputs run_add(TrainOps& ops, const FlatShape& s) {
  Rng rng(43);
  Array a = random_floats(rng, s.n), b = random_floats(rng, s.n), out = unwritten_floats(s.n);
  ops.add(a.floats(), b.floats(), out.floats(), s.n);
  ops.add(a.floats(), b.floats(), a.floats(), s.n);
  Outputs outputs = {float_output("sum", out, 1), float_output("sum in place", a, 1)};
  for (Output& o : outputs) o.exact = true;
  return outputs;
}

inline Outputs run_sum_squares(TrainOps& ops, const FlatShape& s) {
  Rng rng(44);
  Array x = random_floats(rng, s.n, 1e-3);
  const double whole = ops.sum_squares(x.floats(), s.n);
  const size_t half = s.n / 2;
  const FloatRun runs[] = {
      {x.floats(), half}, {x.floats(), s.n}, {x.floats(), 0}, {x.floats() + half, s.n - half}};
  std::vector<double> sums(4, 77);
  ops.sums_of_squares(runs, sums);
  CHECK(sums[0] == ops.sum_squares(x.floats(), half));
  CHECK(sums[1] == whole);
  CHECK(sums[2] == 0);
  return {double_output("sum of squares", {whole, sums[3]}, 1)};
}

}  // namespace fastserve::harness::loss_cases
