// What becomes of one number of a product: ProductEpilogue, element by element.
#pragma once

#include "gpu/matmul_engine.h"
#include "gpu/simt/simt.h"

namespace fastserve::gpu {

/// A Product as a kernel gets it; see matmul_engine.h.
struct ProductArguments {
  ProductEpilogue epilogue;
  int m, n, k;
  const void *a, *b;
  int lda, ldb;
  const float* bias;
  void* out;
  int out_ld;
  const float* residual;
  void* slope;
  int slope_ld, slope_parts;
};

struct Activation {
  float value, slope;
};

/// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) and its derivative.
FS_DEVICE Activation gelu(float x) {
  constexpr float kRoot = 0.7978845608f, kCubic = 0.044715f;
  const float square = x * x, t = tanhf(kRoot * x * (1.0f + kCubic * square));
  return {0.5f * x * (1.0f + t),
          0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * kRoot * (1.0f + 3.0f * kCubic * square)};
}

/// x sigmoid(x) and its derivative.
FS_DEVICE Activation silu(float x) {
  const float s = 1.0f / (1.0f + expf(-x));
  return {x * s, s * (1.0f + x * (1.0f - s))};
}

FS_DEVICE size_t at(int row, int ld, int col = 0) { return size_t(row) * size_t(ld) + size_t(col); }

/// Every epilogue but kSwiGlu.
template <class T>
FS_DEVICE void finish(const ProductArguments& p, int row, int col, float value) {
  if (row >= p.m || col >= p.n) return;
  if (p.bias) value += p.bias[col];
  const size_t to = at(row, p.out_ld, col);
  T* const out = static_cast<T*>(p.out);
  switch (p.epilogue) {
    case ProductEpilogue::kStore:
      out[to] = from_float<T>(value);
      break;
    case ProductEpilogue::kStoreFloat:
      static_cast<float*>(p.out)[to] = value;
      break;
    case ProductEpilogue::kAddResidual:
      static_cast<float*>(p.out)[to] = p.residual[to] + value;
      break;
    case ProductEpilogue::kGelu: {
      const Activation y = gelu(value);
      out[to] = from_float<T>(y.value);
      if (p.slope) static_cast<T*>(p.slope)[at(row, p.slope_ld, col)] = from_float<T>(y.slope);
      break;
    }
    case ProductEpilogue::kTimesSlope:
      for (int part = 0; part < p.slope_parts; ++part) {
        const float slope =
            as_float(static_cast<const T*>(p.slope)[at(row, p.slope_ld, part * p.n + col)]);
        out[to + size_t(part) * size_t(p.n)] = from_float<T>(slope * value);
      }
      break;
    case ProductEpilogue::kSwiGlu:
      break;
  }
}

/// kSwiGlu, for one of the n/2 neurons.
template <class T>
FS_DEVICE void finish_gated(const ProductArguments& p, int row, int neuron, float gate, float up) {
  const int neurons = p.n / 2;
  if (row >= p.m || neuron >= neurons) return;
  if (p.bias) {
    gate += p.bias[neuron];
    up += p.bias[neurons + neuron];
  }
  const Activation y = silu(gate);
  static_cast<T*>(p.out)[at(row, p.out_ld, neuron)] = from_float<T>(y.value * up);
  if (!p.slope) return;
  T* const slope = static_cast<T*>(p.slope) + at(row, p.slope_ld);
  slope[neuron] = from_float<T>(up * y.slope);
  slope[neurons + neuron] = from_float<T>(y.value);
}

/// Which row of b column `col` of a product stands for. kSwiGlu deals gates and ups out in runs of
/// eight, so that a gate and its up are eight columns apart and meet in one thread. -1: none.
FS_DEVICE int weight_row(const ProductArguments& p, int col) {
  if (p.epilogue != ProductEpilogue::kSwiGlu) return col < p.n ? col : -1;
  const int neurons = p.n / 2, neuron = col / 16 * 8 + col % 8;
  if (neuron >= neurons) return -1;
  return (col & 8) ? neurons + neuron : neuron;
}

}  // namespace fastserve::gpu
