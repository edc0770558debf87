// The optimiser's flat ranges of floats.
#pragma once

#include "gpu/kernels/reduce.cuh"

namespace fastserve::gpu {

constexpr int kFlatThreads = 256;

struct AdamWArguments {
  float *param, *m, *v;
  const float* grad;
  size_t n;
  float beta1, beta2, epsilon, grad_scale;
  float decay;             ///< 1 - rate * weight decay
  float rate;              ///< learning rate / (1 - beta1^t)
  float inverse_correct2;  ///< 1 / sqrt(1 - beta2^t)
};

FS_DEVICE float adamw_element(const AdamWArguments& p, float param, float g, float& m, float& v) {
  g *= p.grad_scale;
  m = p.beta1 * m + (1.0f - p.beta1) * g;
  v = p.beta2 * v + (1.0f - p.beta2) * g * g;
  return param * p.decay - p.rate * (m / (sqrtf(v) * p.inverse_correct2 + p.epsilon));
}

/// Decoupled AdamW, four numbers a thread.
///
/// Grid: n / (4 * kFlatThreads), rounded up. Block: kFlatThreads. Bits: an element's own.
/// Needs: with `fours`, all four pointers on 16 bytes.
static __global__ void adamw(AdamWArguments p, bool fours) {
  const size_t i = (size_t(blockIdx.x) * kFlatThreads + threadIdx.x) * 4;
  if (fours && i + 4 <= p.n) {
    float4 m = *reinterpret_cast<float4*>(p.m + i), v = *reinterpret_cast<float4*>(p.v + i);
    float4 x = *reinterpret_cast<float4*>(p.param + i);
    const float4 g = *reinterpret_cast<const float4*>(p.grad + i);
    x.x = adamw_element(p, x.x, g.x, m.x, v.x);
    x.y = adamw_element(p, x.y, g.y, m.y, v.y);
    x.z = adamw_element(p, x.z, g.z, m.z, v.z);
    x.w = adamw_element(p, x.w, g.w, m.w, v.w);
    *reinterpret_cast<float4*>(p.m + i) = m;
    *reinterpret_cast<float4*>(p.v + i) = v;
    *reinterpret_cast<float4*>(p.param + i) = x;
    return;
  }
  for (size_t e = i; e < i + 4 && e < p.n; ++e)
    p.param[e] = adamw_element(p, p.param[e], p.grad[e], p.m[e], p.v[e]);
}

/// 32 random bits for number `i` of a stream: the finaliser of SplitMix64 (Steele et al. 2014).
FS_DEVICE uint32_t dice(uint64_t seed, uint64_t i) {
  uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return uint32_t((z ^ (z >> 31)) >> 32);
}

/// x rounded up or down, with the odds of what is cut off, so that small steps are not lost on
/// average. Infinity and NaN stay; what rounds past the largest number becomes infinity.
FS_DEVICE BFloat16 rounded_by_dice(float x, uint32_t bits) {
  if (!(fabsf(x) < INFINITY)) return from_float<BFloat16>(x);
  return {uint16_t((float_bits(x) + (bits & 0xffffu)) >> 16)};
}

/// adamw, and a copy of the new parameters for the next forward pass; number i of the range is
/// number first + i of the stream of dice, so that how a range is cut into calls changes nothing.
///
/// Grid: n / kFlatThreads, rounded up. Block: kFlatThreads. Bits: an element's own.
static __global__ void adamw_and_round(AdamWArguments p, BFloat16* copy, uint64_t seed,
                                       uint64_t first) {
  const size_t i = size_t(blockIdx.x) * kFlatThreads + threadIdx.x;
  if (i >= p.n) return;
  const float x = adamw_element(p, p.param[i], p.grad[i], p.m[i], p.v[i]);
  p.param[i] = x;
  copy[i] = rounded_by_dice(x, dice(seed, first + i));
}

/// out = a + b; out may be a or b. Grid, block and needs as adamw's.
static __global__ void add_floats(const float* a, const float* b, float* out, size_t n,
                                  bool fours) {
  const size_t i = (size_t(blockIdx.x) * kFlatThreads + threadIdx.x) * 4;
  if (fours && i + 4 <= n) {
    const float4 x = *reinterpret_cast<const float4*>(a + i);
    const float4 y = *reinterpret_cast<const float4*>(b + i);
    *reinterpret_cast<float4*>(out + i) = {x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w};
    return;
  }
  for (size_t e = i; e < i + 4 && e < n; ++e) out[e] = a[e] + b[e];
}

constexpr int kSquareElements = 16384;  ///< numbers that one block of sum_squares takes

/// What one block of sum_squares takes: at most kSquareElements numbers of one run.
struct SquaresPiece {
  const float* x;
  int n;
};

/// partials[block] = the sum of squares of the block's piece, in double.
///
/// Grid: pieces. Block: kFlatThreads. Shared: 8 doubles.
/// Bits: thread t takes four of every 1024; a fixed tree.
static __global__ void sum_squares(const SquaresPiece* pieces, double* partials) {
  FS_SHARED(double, room);
  const SquaresPiece piece = pieces[blockIdx.x];
  double sum = 0;
  constexpr int kAtOnce = 4, kAcross = 4 * kFlatThreads;
  const bool fours = reinterpret_cast<uintptr_t>(piece.x) % 16 == 0;
  FS_NO_UNROLL
  for (int from = 4 * threadIdx.x; from < piece.n; from += kAtOnce * kAcross) {
    float4 x[kAtOnce] = {};
    FS_UNROLL
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = from + k * kAcross, count = piece.n - i < 4 ? piece.n - i : 4;
      if (fours && count == 4) {
        x[k] = *reinterpret_cast<const float4*>(piece.x + i);
      } else {
        if (count > 0) x[k].x = piece.x[i];
        if (count > 1) x[k].y = piece.x[i + 1];
        if (count > 2) x[k].z = piece.x[i + 2];
        if (count > 3) x[k].w = piece.x[i + 3];
      }
    }
    FS_UNROLL
    for (int k = 0; k < kAtOnce; ++k) {
      sum += double(x[k].x) * double(x[k].x);
      sum += double(x[k].y) * double(x[k].y);
      sum += double(x[k].z) * double(x[k].z);
      sum += double(x[k].w) * double(x[k].w);
    }
  }
  sum = block_reduce<Add>(sum, room);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

/// out[run] = the sum of the partials [begins[run], begins[run + 1]).
///
/// Grid: runs. Block: kFlatThreads. Shared: 8 doubles. Bits: as sum_squares'.
static __global__ void sum_partials(const double* partials, const int* begins, double* out) {
  FS_SHARED(double, room);
  double sum = 0;
  for (int i = begins[blockIdx.x] + threadIdx.x; i < begins[blockIdx.x + 1]; i += kFlatThreads)
    sum += partials[i];
  sum = block_reduce<Add>(sum, room);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

}  // namespace fastserve::gpu
