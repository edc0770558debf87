// What becomes of one number of a product: ProductEpilogue, element by element.
#pragma once

#include "gpu/kernels/wide.cuh"
#include "gpu/matmul_engine.h"

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
  bool pairs;  ///< rows of out, residual and slope, and halves of slope, are on pairs of numbers
};

struct Activation {
  float value, slope;
};

constexpr float kLog2E = 1.44269504088896f;

/// 1 / (1 + 2^-x), within a few units of the last place.
FS_DEVICE float sigmoid_of_two(float x) { return divide_fast(1.0f, 1.0f + fast_exp2(-x)); }
/// 1 / (1 + exp(-x)), likewise.
FS_DEVICE float sigmoid(float x) { return sigmoid_of_two(kLog2E * x); }

/// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), which is x sigmoid(2 sqrt(2/pi) (..)), and its
/// derivative.
FS_DEVICE Activation gelu(float x) {
  constexpr float kRoot = 2 * 0.7978845608f, kCubic = 0.044715f;
  constexpr float kTwo = kRoot * kLog2E;
  const float square = x * x, s = sigmoid_of_two(x * (kTwo + kTwo * kCubic * square)), xs = x * s;
  return {xs, s + xs * (1.0f - s) * (kRoot + 3.0f * kRoot * kCubic * square)};
}

/// x sigmoid(x) and its derivative.
FS_DEVICE Activation silu(float x) {
  const float s = sigmoid(x);
  return {x * s, s * (1.0f + x * (1.0f - s))};
}

/// row * ld + col without overflow in int; for host code too.
__host__ FS_DEVICE size_t at(int row, int ld, int col = 0) {
  return size_t(row) * size_t(ld) + size_t(col);
}

template <int kWide>
FS_DEVICE void add_bias(Wide<kWide>& value, const float* bias) {
  FS_UNROLL
  for (int i = 0; i < kWide; ++i) value.v[i] += bias[i];
}

/// What kTimesSlope makes of `value`, given what the activation was of: the gradient of that.
template <int kParts, int kWide>
FS_DEVICE void times_slopes(Wide<kWide> (&out)[kParts], const Wide<kWide>& value,
                            const Wide<kWide> (&before)[kParts]) {
  FS_UNROLL
  for (int i = 0; i < kWide; ++i) {
    if constexpr (kParts == 1) {
      out[0].v[i] = gelu(before[0].v[i]).slope * value.v[i];
    } else {
      const Activation y = silu(before[0].v[i]);
      out[0].v[i] = before[1].v[i] * y.slope * value.v[i];
      out[1].v[i] = y.value * value.v[i];
    }
  }
}

template <class T, int kParts, int kWide>
FS_DEVICE void finish_slopes_inside(const ProductArguments& p, int row, int col,
                                    const Wide<kWide>& value) {
  Wide<kWide> before[kParts], out[kParts];
  FS_UNROLL
  for (int part = 0; part < kParts; ++part) {
    before[part] =
        load_wide<kWide>(static_cast<const T*>(p.slope) + at(row, p.slope_ld, part * p.n + col));
    if (p.bias) add_bias(before[part], p.bias + part * p.n + col);
  }
  times_slopes(out, value, before);
  FS_UNROLL
  for (int part = 0; part < kParts; ++part)
    store_wide(static_cast<T*>(p.out) + at(row, p.out_ld, part * p.n + col), out[part]);
}

/// Every epilogue of the kind but kSwiGlu, for kWide columns inside the product; two only where
/// p.pairs.
template <ProductKind kKind, class T, int kWide>
FS_DEVICE void finish_inside(const ProductArguments& p, int row, int col, Wide<kWide> value) {
  using enum ProductEpilogue;
  if constexpr (goes_with(kKind, kTimesSlope)) {
    if (p.epilogue == kTimesSlope)
      return p.slope_parts == 1 ? finish_slopes_inside<T, 1>(p, row, col, value)
                                : finish_slopes_inside<T, 2>(p, row, col, value);
  }
  if constexpr (goes_with(kKind, kGelu)) {
    if (p.epilogue == kGelu && p.slope)
      store_wide(static_cast<T*>(p.slope) + at(row, p.slope_ld, col), value);
  }
  if (p.bias) add_bias(value, p.bias + col);
  const size_t to = at(row, p.out_ld, col);
  T* const out = static_cast<T*>(p.out) + to;
  if constexpr (goes_with(kKind, kStore)) {
    if (p.epilogue == kStore) return store_wide(out, value);
  }
  if constexpr (goes_with(kKind, kAddResidual)) {
    if (p.epilogue == kAddResidual) {
      const Wide<kWide> before = load_wide<kWide>(p.residual + to);
      FS_UNROLL
      for (int i = 0; i < kWide; ++i) value.v[i] = before.v[i] + value.v[i];
    }
  }
  if (p.epilogue == kStoreFloat || p.epilogue == kAddResidual)
    return store_wide(static_cast<float*>(p.out) + to, value);
  if constexpr (goes_with(kKind, kGelu)) {
    FS_UNROLL
    for (int i = 0; i < kWide; ++i) value.v[i] = gelu(value.v[i]).value;
    store_wide(out, value);
  }
}

/// Columns col and col + 1, col even, of which either may lie outside.
template <ProductKind kKind, class T>
FS_DEVICE void finish(const ProductArguments& p, int row, int col, float first, float second) {
  if (row >= p.m || col >= p.n) return;
  if (p.pairs && col + 1 < p.n) return finish_inside<kKind, T, 2>(p, row, col, {{first, second}});
  FS_NO_UNROLL  // rare, and there are dozens of these calls in a kernel
      for (int i = 0; i < 2 && col + i < p.n; ++i)
          finish_inside<kKind, T, 1>(p, row, col + i, {{i == 0 ? first : second}});
}

/// kSwiGlu, for kWide of the n/2 neurons.
template <class T, int kWide>
FS_DEVICE void finish_gated_inside(const ProductArguments& p, int row, int neuron, Wide<kWide> gate,
                                   Wide<kWide> up) {
  const int neurons = p.n / 2;
  if (p.slope) {
    T* const slope = static_cast<T*>(p.slope) + at(row, p.slope_ld, neuron);
    store_wide(slope, gate);
    store_wide(slope + neurons, up);
  }
  if (p.bias) {
    add_bias(gate, p.bias + neuron);
    add_bias(up, p.bias + neurons + neuron);
  }
  FS_UNROLL
  for (int i = 0; i < kWide; ++i) up.v[i] *= silu(gate.v[i]).value;
  store_wide(static_cast<T*>(p.out) + at(row, p.out_ld, neuron), up);
}

/// Neurons `neuron` and the next, an even one first.
template <class T>
FS_DEVICE void finish_gated(const ProductArguments& p, int row, int neuron, float gate,
                            float next_gate, float up, float next_up) {
  const int neurons = p.n / 2;
  if (row >= p.m || neuron >= neurons) return;
  if (p.pairs && neuron + 1 < neurons)
    return finish_gated_inside<T, 2>(p, row, neuron, {{gate, next_gate}}, {{up, next_up}});
  finish_gated_inside<T, 1>(p, row, neuron, {{gate}}, {{up}});
  if (neuron + 1 < neurons)
    finish_gated_inside<T, 1>(p, row, neuron + 1, {{next_gate}}, {{next_up}});
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
