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

/// A row of a multiple of four floats in a warp's registers: lane l has columns 4 l .. 4 l + 3 of
/// every 128.
template <int kHeld>
struct HeldRow {
  Wide<4> numbers[kHeld];
  int channels;

  FS_DEVICE HeldRow(const float* from, int count) : channels(count) {
    FS_UNROLL
    for (int k = 0; k < kHeld; ++k)
      numbers[k] = column(k) < channels ? load_wide<4>(from + column(k)) : Wide<4>{};
  }
  static FS_DEVICE int column(int k) { return (threadIdx.x & 31) * 4 + k * 128; }
  /// body(k, number) for each that is there, in the order of columns.
  template <class Body>
  FS_DEVICE void each(const Body& body) const {
    FS_UNROLL
    for (int k = 0; k < kHeld; ++k) {
      if (column(k) >= channels) continue;
      FS_UNROLL
      for (int i = 0; i < 4; ++i) body(k, numbers[k].v[i]);
    }
  }
};

/// norm_forward with the row in registers: read once, all of it on its way at once.
///
/// Grid, block, bits: norm_forward's with kWide = 4, and its needs.
/// Needs: channels <= 128 kHeld.
template <class T, int kHeld>
__global__ void norm_forward_held(const float* x, const float* weight, const float* bias,
                                  float epsilon, bool centred, int rows, int channels, T* out,
                                  float* stats) {
  const int row = blockIdx.x * kNormWarps + threadIdx.x / 32, lane = threadIdx.x & 31;
  if (row >= rows) return;
  const HeldRow<kHeld> in(x + at(row, channels), channels);
  float mean = 0, square = 0;
  if (centred) {
    in.each([&](int, float v) { mean += v; });
    mean = warp_reduce<Add>(mean) / float(channels);
  }
  in.each([&](int, float v) { square += (v - mean) * (v - mean); });
  const float inverse = 1.0f / sqrtf(warp_reduce<Add>(square) / float(channels) + epsilon);
  FS_UNROLL
  for (int k = 0; k < kHeld; ++k) {
    const int c = in.column(k);
    if (c >= channels) continue;
    Wide<4> y = in.numbers[k];
    const Wide<4> w = load_wide<4>(weight + c);
    const Wide<4> b = bias ? load_wide<4>(bias + c) : Wide<4>{};
    FS_UNROLL
    for (int i = 0; i < 4; ++i) y.v[i] = (y.v[i] - mean) * inverse * w.v[i] + b.v[i];
    store_wide(out + at(row, channels, c), y);
  }
  if (lane != 0) return;
  stats[at(row, 2)] = mean;
  stats[at(row, 2, 1)] = inverse;
}

constexpr int kNormBackwardWarps = 8;
constexpr int kNormBackwardRows = 64;  ///< rows whose weight gradients one block sums

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

FS_DEVICE void add_or_store(float* to, Wide<4> x, bool add) {
  if (add) {
    const Wide<4> before = load_wide<4>(to);
    FS_UNROLL
    for (int i = 0; i < 4; ++i) x.v[i] += before.v[i];
  }
  store_wide(to, x);
}

/// norm_backward with a warp's rows and sums in registers: each number is read once. A warp takes
/// every kNormBackwardWarps-th of the block's rows.
///
/// Grid:   rows / kNormBackwardRows, rounded up. Block: 32 * kNormBackwardWarps.
/// Shared: 2 * channels floats.
/// Needs:  as norm_forward_held. Bits: a row's means as there; a column's sums by row within a
///         warp, then by warp.
template <class T, int kHeld>
__global__ void __launch_bounds__(32 * kNormBackwardWarps)
    norm_backward_held(NormBackwardArguments p) {
  FS_SHARED(float, sums);  // [2 * channels]: dweight, dbias
  const int warp = threadIdx.x / 32, channels = p.channels;
  const int first = blockIdx.x * kNormBackwardRows;
  Wide<4> dweight[kHeld] = {}, dbias[kHeld] = {};
  FS_NO_UNROLL
  for (int r = warp; r < kNormBackwardRows && first + r < p.rows; r += kNormBackwardWarps) {
    const int row = first + r;
    const HeldRow<kHeld> x(p.x + at(row, channels), channels);
    const HeldRow<kHeld> dy(p.dy + at(row, channels), channels);
    const float mean = p.stats[at(row, 2)], inverse = p.stats[at(row, 2, 1)];
    float g_mean = 0, gh_mean = 0;
    FS_UNROLL
    for (int k = 0; k < kHeld; ++k) {
      const int c = x.column(k);
      if (c >= channels) continue;
      const Wide<4> w = load_wide<4>(p.weight + c);
      FS_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float g = dy.numbers[k].v[i] * w.v[i];
        g_mean += g;
        gh_mean += g * ((x.numbers[k].v[i] - mean) * inverse);
      }
    }
    g_mean = p.centred ? warp_reduce<Add>(g_mean) / float(channels) : 0.0f;
    gh_mean = warp_reduce<Add>(gh_mean) / float(channels);
    FS_UNROLL
    for (int k = 0; k < kHeld; ++k) {
      const int c = x.column(k);
      if (c >= channels) continue;
      const size_t e = at(row, channels, c);
      const Wide<4> w = load_wide<4>(p.weight + c);
      Wide<4> dx = p.accumulate ? load_wide<4>(p.dx + e) : Wide<4>{};
      FS_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float h = (x.numbers[k].v[i] - mean) * inverse, d = dy.numbers[k].v[i];
        dweight[k].v[i] += d * h;
        dbias[k].v[i] += d;
        dx.v[i] += inverse * (d * w.v[i] - g_mean - h * gh_mean);
      }
      store_wide(p.dx + e, dx);
      if (p.dx_compute) store_wide(static_cast<T*>(p.dx_compute) + e, dx);
    }
  }
  for (int turn = 0; turn < kNormBackwardWarps; ++turn) {
    if (turn == warp) {
      FS_UNROLL
      for (int k = 0; k < kHeld; ++k) {
        const int c = HeldRow<kHeld>::column(k);
        if (c >= channels) continue;
        add_or_store(sums + c, dweight[k], turn > 0);
        add_or_store(sums + channels + c, dbias[k], turn > 0);
      }
    }
    __syncthreads();
  }
  for (int c = threadIdx.x * 4; c < 2 * channels; c += 128 * kNormBackwardWarps)
    store_wide(p.partials + at(blockIdx.x, 2 * channels, c), load_wide<4>(sums + c));
}

}  // namespace fastserve::gpu
