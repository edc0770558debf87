// Sums of a matrix's columns.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"

namespace fastserve::gpu {

constexpr int kSumRows = 256;  ///< rows that one block of sum_columns takes

/// out[blockIdx.y * out_ld + c] (+)= the sum of column c over the block's kSumRows rows.
///
/// Grid: (columns / 32, rows / kSumRows), rounded up. Block: (32, 8). Shared: 8 * 33 floats.
/// Bits: eight chains of every eighth row, added in order.
template <class T>
__global__ void sum_columns(const T* in, int rows, int cols, int ld, float* out, int out_ld,
                            bool accumulate) {
  FS_SHARED(float, room);
  const int col = blockIdx.x * 32 + threadIdx.x, first = blockIdx.y * kSumRows;
  const int end = first + kSumRows < rows ? first + kSumRows : rows;
  float sum = 0;
  if (col < cols)
    for (int r = first + threadIdx.y; r < end; r += 8) sum += as_float(in[at(r, ld, col)]);
  room[threadIdx.y * 33 + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || col >= cols) return;
  for (int i = 1; i < 8; ++i) sum += room[i * 33 + threadIdx.x];
  float* const to = out + at(blockIdx.y, out_ld, col);
  *to = accumulate ? *to + sum : sum;
}

}  // namespace fastserve::gpu
