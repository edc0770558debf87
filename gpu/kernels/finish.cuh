// What a library's product is made into: epilogues as passes of their own.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"

namespace fastserve::gpu {

constexpr int kFinishThreads = 256, kFinishWarps = kFinishThreads / 32;

/// kStore and kStoreFloat of kForward, on a product [p.m, p.n] that lies at `product` as numbers of
/// P. It may lie where out will: a thread reads all that it needs before it writes.
///
/// Grid:  p.m * p.n / (kWide * kFinishThreads), rounded up. Block: kFinishThreads.
/// Needs: less than 2^32 threads; p.n and every leading dimension multiples of kWide, every pointer
///        on 16 bytes.
/// Bits:  an element's own.
template <class T, class P, int kWide>
__global__ void finish_product(ProductArguments p, const P* product, int ld) {
  const unsigned across = p.n / kWide, item = blockIdx.x * kFinishThreads + threadIdx.x;
  const int row = int(item / across), col = int(item % across) * kWide;
  if (row >= p.m) return;
  finish_inside<ProductKind::kForward, T, kWide>(p, row, col,
                                                 load_wide<kWide>(product + at(row, ld, col)));
}

// The passes of activations: a lane stays with its columns, so that their biases and sums stay in
// registers, and warps walk down the block's kSumRun rows, several rows' loads ahead of their use.

template <int kWide>
FS_DEVICE Wide<kWide> bias_of(const float* bias, int col) {
  Wide<kWide> out{};
  if (bias) add_bias(out, bias + col);
  return out;
}

template <int kWide>
FS_DEVICE void add_to(Wide<kWide>& sum, const Wide<kWide>& x) {
  FS_UNROLL
  for (int i = 0; i < kWide; ++i) sum.v[i] += x.v[i];
}

/// kGelu; or, with two parts, kSwiGlu of a product whose first half are gates, the second ups. The
/// product is numbers of T, less the bias, and may lie where out will be with one part.
///
/// Grid:  (columns of out / (32 kWide), p.m / kSumRun), rounded up. Block: (32, kFinishWarps).
/// Needs: as finish_product; halves of slope multiples of kWide, too.
/// Bits:  an element's own.
template <class T, int kParts, int kWide>
__global__ void __launch_bounds__(kFinishThreads)
    finish_activation(ProductArguments p, const T* product, int ld) {
  constexpr int kAtOnce = 4 / kParts;
  const int width = p.n / kParts, col = (blockIdx.x * 32 + threadIdx.x) * kWide;
  if (col >= width) return;
  const int first = blockIdx.y * kSumRun;
  const int end = p.m - first < kSumRun ? p.m : first + kSumRun;
  Wide<kWide> bias[kParts];
  FS_UNROLL
  for (int part = 0; part < kParts; ++part) bias[part] = bias_of<kWide>(p.bias, part * width + col);
  for (int top = first + threadIdx.y; top < end; top += kFinishWarps * kAtOnce) {
    Packed<kWide, T> in[kAtOnce][kParts];
    FS_UNROLL
    for (int k = 0; k < kAtOnce; ++k) {
      const int row = top + kFinishWarps * k;
      if (row >= end) continue;
      FS_UNROLL
      for (int part = 0; part < kParts; ++part)
        in[k][part] = load_packed<kWide>(product + at(row, ld, part * width + col));
    }
    FS_UNROLL
    for (int k = 0; k < kAtOnce; ++k) {
      const int row = top + kFinishWarps * k;
      if (row >= end) continue;
      Wide<kWide> x[kParts];
      FS_UNROLL
      for (int part = 0; part < kParts; ++part) {
        x[part] = widen<kWide, T>(in[k][part]);
        add_to(x[part], bias[part]);
      }
      FS_UNROLL
      for (int i = 0; i < kWide; ++i) {
        if constexpr (kParts == 1)
          x[0].v[i] = gelu(x[0].v[i]).value;
        else
          x[0].v[i] = silu(x[0].v[i]).value * x[1].v[i];
      }
      store_wide(static_cast<T*>(p.out) + at(row, p.out_ld, col), x[0]);
    }
  }
}

constexpr size_t finish_slopes_shared(int parts) {
  return sizeof(float) * 8 * kFinishThreads * static_cast<size_t>(parts);
}

/// The warps' sums of a column, added in order: to `sums`, [runs of rows, kParts width].
template <int kParts, int kWide>
FS_DEVICE void join_sums(const Wide<kWide> (&sum)[kParts], float* room, float* sums, int width) {
  static_assert(kWide == kFinishWarps);  // each thread joins one column of a part
  FS_UNROLL
  for (int part = 0; part < kParts; ++part) {
    FS_UNROLL
    for (int i = 0; i < kWide; ++i)
      room[((part * kFinishWarps + threadIdx.y) * kWide + i) * 32 + threadIdx.x] = sum[part].v[i];
  }
  __syncthreads();
  const int col = (blockIdx.x * 32 + threadIdx.x) * kWide + threadIdx.y;
  if (col >= width) return;
  FS_UNROLL
  for (int part = 0; part < kParts; ++part) {
    const float* const from = room + part * kFinishWarps * kWide * 32 + threadIdx.y * 32;
    float all = from[threadIdx.x];
    FS_UNROLL
    for (int warp = 1; warp < kFinishWarps; ++warp) all += from[warp * kWide * 32 + threadIdx.x];
    sums[at(blockIdx.y, kParts * width, part * width + col)] = all;
  }
}

/// kTimesSlope with kParts parts, on a product of numbers of T that may lie in either half of out.
/// kBiased: with p.bias and `sums`, of which either may be null.
///
/// Grid:   (p.n / (32 kWide), p.m / kSumRun), rounded up. Block: (32, kFinishWarps).
/// Shared: finish_slopes_shared(kParts) where kBiased.
/// Needs:  as finish_activation.
/// Bits:   an element's own; a sum is eight chains of every eighth row of the run, added in order.
template <class T, int kParts, bool kBiased, int kWide>
__global__ void __launch_bounds__(kFinishThreads, kBiased&& kParts == 2 ? 2 : 3)
    finish_slopes(ProductArguments p, const T* product, int ld, float* sums) {
  constexpr int kAtOnce = 2;
  FS_SHARED(float, room);
  const int col = (blockIdx.x * 32 + threadIdx.x) * kWide;
  const int first = blockIdx.y * kSumRun;
  const int end = col >= p.n ? 0 : p.m - first < kSumRun ? p.m : first + kSumRun;
  Wide<kWide> bias[kParts] = {}, sum[kParts] = {};
  if constexpr (kBiased) {
    FS_UNROLL
    for (int part = 0; part < kParts && col < p.n; ++part)
      bias[part] = bias_of<kWide>(p.bias, part * p.n + col);
  }
  Packed<kWide, T> in[kAtOnce], slope[kAtOnce][kParts];
  const auto fetch = [&](int k, int row) {
    if (row >= end) return;
    in[k] = load_packed<kWide>(product + at(row, ld, col));
    FS_UNROLL
    for (int part = 0; part < kParts; ++part)
      slope[k][part] = load_packed<kWide>(static_cast<const T*>(p.slope) +
                                          at(row, p.slope_ld, part * p.n + col));
  };
  FS_UNROLL
  for (int k = 0; k < kAtOnce; ++k) fetch(k, first + threadIdx.y + kFinishWarps * k);
  for (int top = first + threadIdx.y; top < end; top += kFinishWarps * kAtOnce) {
    FS_UNROLL
    for (int k = 0; k < kAtOnce; ++k) {
      const int row = top + kFinishWarps * k;
      if (row >= end) continue;
      const Packed<kWide, T> now = in[k];
      Packed<kWide, T> slopes[kParts];
      FS_UNROLL
      for (int part = 0; part < kParts; ++part) slopes[part] = slope[k][part];
      fetch(k, row + kFinishWarps * kAtOnce);  // on its way while this row is computed
      Wide<kWide> before[kParts], out[kParts];
      FS_UNROLL
      for (int part = 0; part < kParts; ++part) {
        before[part] = widen<kWide, T>(slopes[part]);
        if constexpr (kBiased) add_to(before[part], bias[part]);
      }
      times_slopes(out, widen<kWide, T>(now), before);
      FS_UNROLL
      for (int part = 0; part < kParts; ++part) {
        const Packed<kWide / 2, uint32_t> stored = pack_wide<T>(out[part]);
        T* const to = static_cast<T*>(p.out) + at(row, p.out_ld, part * p.n + col);
        *reinterpret_cast<Packed<kWide / 2, uint32_t>*>(to) = stored;
        if constexpr (kBiased) {
          FS_UNROLL
          for (int i = 0; i < kWide; ++i)
            sum[part].v[i] += as_float(T{uint16_t(stored.numbers[i / 2] >> (i % 2 * 16))});
        }
      }
    }
  }
  if constexpr (kBiased) {
    if (sums) join_sums(sum, room, sums, p.n);
  }
}

}  // namespace fastserve::gpu
