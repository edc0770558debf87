// LayerNorm and RMSNorm over the residual stream.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"
#include "gpu/kernels/reduce.cuh"
#include "gpu/kernels/wide.cuh"

namespace fastserve::gpu {

constexpr int kNormWarps = 4;  ///< rows that one block of norm_forward takes

/// (mean, 1/std) or (0, 1/rms) of one row, in every lane of a warp. Two passes: the second finds
/// the row in the cache, and small variances of large means stay exact.
template <int kWide>
FS_DEVICE float2 row_statistics(const float* x, int channels, float epsilon, bool centred) {
  const int first = (threadIdx.x & 31) * kWide;
  float mean = 0, square = 0;
  if (centred) {
    for (int c = first; c < channels; c += 32 * kWide) {
      const Wide<kWide> in = load_wide<kWide>(x + c);
      FS_UNROLL
      for (int i = 0; i < kWide; ++i) mean += in.v[i];
    }
    mean = warp_reduce<Add>(mean) / float(channels);
  }
  for (int c = first; c < channels; c += 32 * kWide) {
    const Wide<kWide> in = load_wide<kWide>(x + c);
    FS_UNROLL
    for (int i = 0; i < kWide; ++i) square += (in.v[i] - mean) * (in.v[i] - mean);
  }
  square = warp_reduce<Add>(square) / float(channels);
  return {mean, 1.0f / sqrtf(square + epsilon)};
}

/// out = (x - mean) * inverse * weight + bias; stats [rows, 2].
///
/// Grid:  rows / kNormWarps, rounded up. Block: 32 * kNormWarps, a warp a row.
/// Needs: kWide = 4: channels a multiple of 4 and every pointer on 16 bytes.
/// Bits:  lane l sums columns l kWide .. + kWide - 1, then those 32 kWide on; the lanes by halves.
template <class T, int kWide>
__global__ void norm_forward(const float* x, const float* weight, const float* bias, float epsilon,
                             bool centred, int rows, int channels, T* out, float* stats) {
  const int row = blockIdx.x * kNormWarps + threadIdx.x / 32, lane = threadIdx.x & 31;
  if (row >= rows) return;
  const float* const from = x + at(row, channels);
  const float2 s = row_statistics<kWide>(from, channels, epsilon, centred);
  for (int c = lane * kWide; c < channels; c += 32 * kWide) {
    Wide<kWide> y = load_wide<kWide>(from + c);
    const Wide<kWide> w = load_wide<kWide>(weight + c);
    const Wide<kWide> b = bias ? load_wide<kWide>(bias + c) : Wide<kWide>{};
    FS_UNROLL
    for (int i = 0; i < kWide; ++i) y.v[i] = (y.v[i] - s.x) * s.y * w.v[i] + b.v[i];
    store_wide(out + at(row, channels, c), y);
  }
  if (lane != 0) return;
  stats[at(row, 2)] = s.x;
  stats[at(row, 2, 1)] = s.y;
}

constexpr int kNormBackwardWarps = 8;
constexpr int kNormBackwardRows = 32;  ///< rows whose weight gradients one block sums

struct NormBackwardArguments {
  const float *dy, *x, *weight, *stats;
  int rows, channels;
  bool centred, accumulate;
  float* dx;
  void* dx_compute;
  float* partials;  ///< [blocks, 2 * channels]: dweight, dbias
};

/// With h = (x - mean) inverse and g = dy weight: dx = inverse (g - mean(g) - h mean(g h)); the
/// block's sums of dy h and dy go to `partials`.
///
/// Grid:   rows / kNormBackwardRows, rounded up. Block: 32 * kNormBackwardWarps.
/// Shared: (2 * channels + 2 * kNormBackwardWarps) floats.
/// Needs:  as norm_forward. Bits: a row's means as there; a column's sums in row order.
template <class T, int kWide>
__global__ void norm_backward(NormBackwardArguments p) {
  FS_SHARED(float, shared);
  float* const dweight = shared;  // [channels], each owned by one thread; so is dbias
  float* const dbias = shared + p.channels;
  float* const means = dbias + p.channels;  // [kNormBackwardWarps][2]
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, own = threadIdx.x * kWide;
  const int across = 32 * kNormBackwardWarps * kWide;
  const int first = blockIdx.x * kNormBackwardRows;
  for (int c = own; c < p.channels; c += across) {
    store_wide(dweight + c, Wide<kWide>{});
    store_wide(dbias + c, Wide<kWide>{});
  }
  for (int from = first; from < first + kNormBackwardRows && from < p.rows;
       from += kNormBackwardWarps) {
    const int row = from + warp;
    if (row < p.rows) {
      const float mean = p.stats[at(row, 2)], inverse = p.stats[at(row, 2, 1)];
      float g_mean = 0, gh_mean = 0;
      for (int c = lane * kWide; c < p.channels; c += 32 * kWide) {
        const Wide<kWide> x = load_wide<kWide>(p.x + at(row, p.channels, c));
        const Wide<kWide> dy = load_wide<kWide>(p.dy + at(row, p.channels, c));
        const Wide<kWide> w = load_wide<kWide>(p.weight + c);
        FS_UNROLL
        for (int i = 0; i < kWide; ++i) {
          const float g = dy.v[i] * w.v[i];
          g_mean += g;
          gh_mean += g * ((x.v[i] - mean) * inverse);
        }
      }
      g_mean = warp_reduce<Add>(g_mean);
      gh_mean = warp_reduce<Add>(gh_mean);
      if (lane == 0) {
        means[2 * warp] = p.centred ? g_mean / float(p.channels) : 0.0f;
        means[2 * warp + 1] = gh_mean / float(p.channels);
      }
    }
    __syncthreads();
    const int count = p.rows - from < kNormBackwardWarps ? p.rows - from : kNormBackwardWarps;
    for (int c = own; c < p.channels; c += across) {
      const Wide<kWide> w = load_wide<kWide>(p.weight + c);
      Wide<kWide> sum_weight = load_wide<kWide>(dweight + c);
      Wide<kWide> sum_bias = load_wide<kWide>(dbias + c);
      for (int r = 0; r < count; ++r) {
        const size_t e = at(from + r, p.channels, c);
        const float mean = p.stats[at(from + r, 2)], inverse = p.stats[at(from + r, 2, 1)];
        const Wide<kWide> x = load_wide<kWide>(p.x + e), dy = load_wide<kWide>(p.dy + e);
        Wide<kWide> dx = p.accumulate ? load_wide<kWide>(p.dx + e) : Wide<kWide>{};
        FS_UNROLL
        for (int i = 0; i < kWide; ++i) {
          const float h = (x.v[i] - mean) * inverse;
          sum_weight.v[i] += dy.v[i] * h;
          sum_bias.v[i] += dy.v[i];
          dx.v[i] += inverse * (dy.v[i] * w.v[i] - means[2 * r] - h * means[2 * r + 1]);
        }
        store_wide(p.dx + e, dx);
        if (p.dx_compute) store_wide(static_cast<T*>(p.dx_compute) + e, dx);
      }
      store_wide(dweight + c, sum_weight);
      store_wide(dbias + c, sum_bias);
    }
    __syncthreads();  // the means are overwritten next
  }
  for (int c = own; c < p.channels; c += across) {
    store_wide(p.partials + at(blockIdx.x, 2 * p.channels, c), load_wide<kWide>(dweight + c));
    store_wide(p.partials + at(blockIdx.x, 2 * p.channels, p.channels + c),
               load_wide<kWide>(dbias + c));
  }
}

}  // namespace fastserve::gpu
