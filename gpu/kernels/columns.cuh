// Sums of a matrix's columns.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"

namespace fastserve::gpu {

/// Rows that one block of sum_columns takes: more of them where they are all that there are.
constexpr int kSumRows = 128, kMostSumRows = 256;
template <int kWide>
constexpr size_t kSumShared = 8 * (32 * kWide + 1) * sizeof(float);

/// out[blockIdx.y * out_ld + c] (+)= the sum of column c over the block's `run` rows.
///
/// Grid:   (columns / (32 kWide), rows / run), rounded up. Block: (32, 8). Shared: kSumShared.
/// Needs:  kWide > 1: cols and ld multiples of it, `in` on as many numbers.
/// Bits:   eight chains of every eighth row, added in order.
template <class T, int kWide>
__global__ void sum_columns(const T* in, int rows, int run, int cols, int ld, float* out,
                            int out_ld, bool accumulate) {
  FS_SHARED(float, room);
  constexpr int kLd = 32 * kWide + 1, kAtOnce = 8;
  const int own = threadIdx.x * kWide, col = blockIdx.x * 32 * kWide + own;
  const int first = blockIdx.y * run, end = rows - first < run ? rows : first + run;
  Wide<kWide> sum{};
  if (col < cols)
    for (int r = first + threadIdx.y; r < end; r += 8 * kAtOnce) {
      Wide<kWide> x[kAtOnce];
      FS_UNROLL
      for (int k = 0; k < kAtOnce; ++k)
        x[k] = r + 8 * k < end ? load_wide<kWide>(in + at(r + 8 * k, ld, col)) : Wide<kWide>{};
      FS_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        FS_UNROLL
        for (int i = 0; i < kWide; ++i) sum.v[i] += x[k].v[i];
      }
    }
  FS_UNROLL
  for (int i = 0; i < kWide; ++i) room[threadIdx.y * kLd + own + i] = sum.v[i];
  __syncthreads();
  if (threadIdx.y != 0 || col >= cols) return;
  for (int i = 0; i < kWide; ++i) {
    float all = room[own + i];
    for (int k = 1; k < 8; ++k) all += room[k * kLd + own + i];
    float* const to = out + at(blockIdx.y, out_ld, col + i);
    *to = accumulate ? *to + all : all;
  }
}

}  // namespace fastserve::gpu
