// The three products of a linear layer.
#include <algorithm>

#include "cpu/reference/train_functions.h"

namespace fastserve::reference {
namespace {

const Matrix& plain(const TrainMatrix* matrix) { return static_cast<const Matrix&>(*matrix); }

/// x W^T + bias in double, [rows, out].
std::vector<double> products(const Compute& compute, const MatmulForward& op) {
  const Matrix& w = plain(op.weight);
  const int out = w.out(), in = w.in();
  const std::vector<double> x = compute.matrix(op.x, op.rows, in, op.x_ld);
  std::vector<double> y(at(op.rows, out));
  for (int r = 0; r < op.rows; ++r)
    for (int o = 0; o < out; ++o) {
      double sum = op.bias ? op.bias[o] : 0.0;
      for (int i = 0; i < in; ++i) sum += x[at(r, in, i)] * w.values[at(o, in, i)];
      y[at(r, out, o)] = sum;
    }
  return y;
}

}  // namespace

void matmul_forward(const Compute& compute, const MatmulForward& op) {
  const std::vector<double> y = products(compute, op);
  const int out = op.weight->out(), ld = op.out_ld;
  float* floats = static_cast<float*>(op.out);
  for (int r = 0; r < op.rows; ++r) {
    if (op.epilogue == MatmulEpilogue::kSwiGlu) {
      const int neurons = out / 2;
      for (int f = 0; f < neurons; ++f) {
        const double gate = y[at(r, out, f)], up = y[at(r, out, neurons + f)];
        compute.store(op.out, at(r, ld, f), silu(gate) * up);
        if (!op.slope) continue;
        compute.store(op.slope, at(r, out, f), up * silu_slope(gate));
        compute.store(op.slope, at(r, out, neurons + f), silu(gate));
      }
      continue;
    }
    for (int o = 0; o < out; ++o) {
      const double p = y[at(r, out, o)];
      switch (op.epilogue) {
        case MatmulEpilogue::kStore:
          compute.store(op.out, at(r, ld, o), p);
          break;
        case MatmulEpilogue::kStoreFloat:
          floats[at(r, ld, o)] = static_cast<float>(p);
          break;
        case MatmulEpilogue::kAddResidual:
          floats[at(r, ld, o)] = static_cast<float>(op.residual[at(r, ld, o)] + p);
          break;
        case MatmulEpilogue::kGelu:
          compute.store(op.out, at(r, ld, o), gelu(p));
          if (op.slope) compute.store(op.slope, at(r, out, o), gelu_slope(p));
          break;
        case MatmulEpilogue::kSwiGlu:
          break;
      }
    }
  }
}

void matmul_backward_input(const Compute& compute, const MatmulBackwardInput& op) {
  const Matrix& w = plain(op.weight);
  const int out = w.out(), in = w.in();
  const std::vector<double> dy = compute.matrix(op.dy, op.rows, out, op.dy_ld);
  std::vector<double> sums(static_cast<size_t>(in)), columns(at(op.slope_parts, in));
  for (int r = 0; r < op.rows; ++r) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int o = 0; o < out; ++o)
      for (int i = 0; i < in; ++i)
        sums[static_cast<size_t>(i)] += dy[at(r, out, o)] * w.values[at(o, in, i)];
    for (int i = 0; i < in; ++i) {
      const double d = sums[static_cast<size_t>(i)];
      switch (op.epilogue) {
        case InputGradEpilogue::kStore:
          compute.store(op.dx, at(r, op.dx_ld, i), d);
          break;
        case InputGradEpilogue::kStoreFloat:
          static_cast<float*>(op.dx)[at(r, op.dx_ld, i)] = static_cast<float>(d);
          break;
        case InputGradEpilogue::kTimesSlope:
          for (int part = 0; part < op.slope_parts; ++part) {
            const size_t e = at(r, op.dx_ld, part * in + i);
            compute.store(op.dx, e, compute.load(op.slope, e) * d);
            columns[at(part, in, i)] += compute.load(op.dx, e);
          }
          break;
      }
    }
  }
  if (!op.dbias) return;
  FS_CHECK(op.epilogue == InputGradEpilogue::kTimesSlope);
  for (size_t c = 0; c < columns.size(); ++c)
    op.dbias[c] = static_cast<float>(op.dbias[c] + columns[c]);
}

void matmul_backward_weight(const Compute& compute, const MatmulBackwardWeight& op) {
  const std::vector<double> dy = compute.matrix(op.dy, op.rows, op.out, op.dy_ld);
  const std::vector<double> x = compute.matrix(op.x, op.rows, op.in, op.x_ld);
  std::vector<double> sums(static_cast<size_t>(op.in));
  for (int o = 0; o < op.out; ++o) {
    std::fill(sums.begin(), sums.end(), 0.0);
    double bias = 0;
    for (int r = 0; r < op.rows; ++r) {
      const double d = dy[at(r, op.out, o)];
      for (int i = 0; i < op.in; ++i) sums[static_cast<size_t>(i)] += d * x[at(r, op.in, i)];
      bias += d;
    }
    for (int i = 0; i < op.in; ++i) {
      float& dw = op.dweight[at(o, op.in, i)];
      dw = static_cast<float>((op.accumulate ? dw : 0.0) + sums[static_cast<size_t>(i)]);
    }
    if (op.dbias) op.dbias[o] = static_cast<float>(op.dbias[o] + bias);
  }
}

}  // namespace fastserve::reference
