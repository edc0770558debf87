// LayerNorm and RMSNorm over the residual stream.
#pragma once

#include "gpu/kernels/columns.cuh"
#include "gpu/kernels/product_epilogue.cuh"
#include "gpu/kernels/reduce.cuh"
#include "gpu/kernels/wide.cuh"
#include "gpu/simt/tensor_core.h"

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

/// Blocks of norm_backward: as many as run at once on 132 multiprocessors, three of each or two
/// where rows are long. How many rows one takes follows from the shape alone.
constexpr int kNormBackwardBlocks = 384, kNormBackwardLongBlocks = 256, kNormBackwardRows = 4;
static_assert(kNormBackwardBlocks <= kMostJoined);
inline int norm_backward_rows(int rows, int channels) {
  const int blocks = channels <= 1024 ? kNormBackwardBlocks : kNormBackwardLongBlocks;
  const int each = (rows + blocks - 1) / blocks;
  return (each + kNormBackwardRows - 1) / kNormBackwardRows * kNormBackwardRows;
}

struct NormBackwardArguments {
  const void* dy;  ///< numbers of T
  const float *x, *weight, *stats;
  int rows, channels;
  bool centred, accumulate, with_bias, with_dx;
  float* dx;
  void* dx_compute;
  int each;  ///< rows that a block takes
  /// [blocks, wide]: sums for dweight, then with_bias for dbias, then with_dx for dx_sums.
  float* partials;
  int wide;
};

/// Shared memory of norm_backward: two means of each row that is at work, of each warp, twice; and,
/// of kAhead, the rows at work and the next.
template <int kWide, int kHeld, int kRows, bool kAhead>
constexpr size_t norm_backward_shared(int threads) {
  const size_t means = size_t(threads) / 32 * kRows * 4;
  return (means + (kAhead ? size_t(threads) * 2 * kRows * 3 * kHeld * kWide : 0)) * sizeof(float);
}

/// A thread's columns of a block's rows, in memory or ahead of their use in shared memory, where
/// they lie [turn][row of kRows][x, dy, dx][held][thread]: nobody else reads what a thread fetched.
template <class T, int kWide, int kHeld, int kRows, bool kAhead>
struct NormColumns {
  using Numbers = Wide<kWide>;
  const NormBackwardArguments& p;
  Packed<kWide, float>* ahead;
  int end;  ///< of the block's rows

  static FS_DEVICE int column(int k) { return (k * int(blockDim.x) + int(threadIdx.x)) * kWide; }
  FS_DEVICE bool there(int row, int k) const { return row < end && column(k) < p.channels; }
  FS_DEVICE Packed<kWide, float>* place(int turn, int r, int operand, int k) const {
    return ahead + (((turn * kRows + r) * 3 + operand) * kHeld + k) * int(blockDim.x) + threadIdx.x;
  }
  FS_DEVICE const T* dy() const { return static_cast<const T*>(p.dy); }

  FS_DEVICE void fetch(int from, int turn) const {
    if constexpr (kAhead) {
      FS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        FS_UNROLL
        for (int k = 0; k < kHeld; ++k) {
          if (!there(from + r, k)) continue;
          const size_t e = at(from + r, p.channels, column(k));
          copy_async(place(turn, r, 0, k), p.x + e, 16);
          if constexpr (sizeof(T) == 4)
            copy_async(place(turn, r, 1, k), dy() + e, 16);
          else
            copy_async_8(place(turn, r, 1, k), dy() + e, true);
          if (p.accumulate) copy_async(place(turn, r, 2, k), p.dx + e, 16);
        }
      }
      copy_commit();
    }
  }
  /// What the fetch before the last one asked for is there.
  static FS_DEVICE void wait() {
    if constexpr (kAhead) copy_wait<1>();
  }
  FS_DEVICE void read(int from, int turn, int r, int k, Numbers& x, Numbers& d, Numbers& dx) const {
    x = d = dx = {};
    if (!there(from + r, k)) return;
    if constexpr (kAhead) {
      x = load_wide<kWide>(place(turn, r, 0, k)->numbers);
      d = load_wide<kWide>(reinterpret_cast<const T*>(place(turn, r, 1, k)));
      if (p.accumulate) dx = load_wide<kWide>(place(turn, r, 2, k)->numbers);
    } else {
      const size_t e = at(from + r, p.channels, column(k));
      x = load_wide<kWide>(p.x + e);
      d = load_wide<kWide>(dy() + e);
      if (p.accumulate) dx = load_wide<kWide>(p.dx + e);
    }
  }
};

/// With h = (x - mean) inverse and g = dy weight: dx = inverse (g - mean(g) - h mean(g h)); the
/// block's sums of dy h, dy and the new dx go to `partials`.
///
/// A thread owns kHeld times kWide columns, and the block kRows rows at a time, all of whose
/// numbers are on their way at once and read once. What it has to wait for is one barrier: the
/// means lie in two rooms by turns. kAhead: the next rows' numbers are on their way to shared
/// memory meanwhile, each to the thread that asked for it, so that the memory never stands still.
///
/// Grid:   rows / each, rounded up. Block: whole warps, at most kThreads.
/// Shared: norm_backward_shared().
/// Needs:  as norm_forward; channels <= kHeld * kWide * threads; each a multiple of kRows; of
///         kAhead kWide = 4.
/// Bits:   a row's means by threads, lanes by halves, then by warp; a column's sums in row order.
template <class T, int kWide, int kHeld, int kRows, int kThreads, bool kAhead>
__global__ void __launch_bounds__(kThreads, kHeld* kWide <= 8 ? 2 : 1)
    norm_backward(NormBackwardArguments p) {
  FS_SHARED(float, room);
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int first = blockIdx.x * p.each;
  const int end = first + p.each < p.rows ? first + p.each : p.rows;
  const NormColumns<T, kWide, kHeld, kRows, kAhead> columns{
      p, reinterpret_cast<Packed<kWide, float>*>(room + warps * 4 * kRows), end};
  const auto column = [&](int k) { return columns.column(k); };
  Wide<kWide> weight[kHeld], dweight[kHeld] = {}, dbias[kHeld] = {}, dx_sum[kHeld] = {};
  FS_UNROLL
  for (int k = 0; k < kHeld; ++k)
    weight[k] = column(k) < p.channels ? load_wide<kWide>(p.weight + column(k)) : Wide<kWide>{};
  float* means = room;
  float ahead_stats[2 * kRows];
  const auto fetch_stats = [&](int from) {
    FS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int row = from + r < end ? from + r : end - 1;
      ahead_stats[2 * r] = p.stats[at(row, 2)];
      ahead_stats[2 * r + 1] = p.stats[at(row, 2, 1)];
    }
  };
  fetch_stats(first);
  int turn = 0;
  columns.fetch(first, turn);
  FS_NO_UNROLL
  for (int from = first; from < end; from += kRows) {
    Wide<kWide> x[kRows][kHeld], dy[kRows][kHeld], dx[kRows][kHeld];
    float mean[kRows], inverse[kRows], sums[2 * kRows] = {};
    FS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      mean[r] = ahead_stats[2 * r];
      inverse[r] = ahead_stats[2 * r + 1];
    }
    fetch_stats(from + kRows);
    columns.fetch(from + kRows, turn ^ 1);
    columns.wait();
    FS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FS_UNROLL
      for (int k = 0; k < kHeld; ++k) columns.read(from, turn, r, k, x[r][k], dy[r][k], dx[r][k]);
    }
    turn ^= 1;
    FS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FS_UNROLL
      for (int k = 0; k < kHeld; ++k) {
        FS_UNROLL
        for (int i = 0; i < kWide; ++i) {
          const float g = dy[r][k].v[i] * weight[k].v[i];
          x[r][k].v[i] = (x[r][k].v[i] - mean[r]) * inverse[r];
          sums[2 * r] += g;
          sums[2 * r + 1] += g * x[r][k].v[i];
        }
      }
    }
    FS_UNROLL
    for (int s = 0; s < 2 * kRows; ++s) {
      sums[s] = warp_reduce<Add>(sums[s]);
      if (threadIdx.x % 32 == 0) means[warp * 2 * kRows + s] = sums[s];
    }
    __syncthreads();
    FS_UNROLL
    for (int s = 0; s < 2 * kRows; ++s) {
      sums[s] = means[s];
      for (int w = 1; w < warps; ++w) sums[s] += means[w * 2 * kRows + s];
      sums[s] = s % 2 == 0 && !p.centred ? 0.0f : sums[s] / float(p.channels);
    }
    means = means == room ? room + warps * 2 * kRows : room;
    FS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (from + r >= end) break;
      FS_UNROLL
      for (int k = 0; k < kHeld; ++k) {
        if (column(k) >= p.channels) continue;
        FS_UNROLL
        for (int i = 0; i < kWide; ++i) {
          const float d = dy[r][k].v[i], h = x[r][k].v[i];
          dweight[k].v[i] += d * h;
          dbias[k].v[i] += d;
          dx[r][k].v[i] += inverse[r] * (d * weight[k].v[i] - sums[2 * r] - h * sums[2 * r + 1]);
          dx_sum[k].v[i] += dx[r][k].v[i];
        }
        const size_t e = at(from + r, p.channels, column(k));
        store_wide(p.dx + e, dx[r][k]);
        if (p.dx_compute) store_wide(static_cast<T*>(p.dx_compute) + e, dx[r][k]);
      }
    }
  }
  float* const to = p.partials + at(blockIdx.x, p.wide);
  FS_UNROLL
  for (int k = 0; k < kHeld; ++k) {
    if (column(k) >= p.channels) continue;
    store_wide(to + column(k), dweight[k]);
    if (p.with_bias) store_wide(to + p.channels + column(k), dbias[k]);
    if (p.with_dx) store_wide(to + p.wide - p.channels + column(k), dx_sum[k]);
  }
}

}  // namespace fastserve::gpu
