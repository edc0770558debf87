// Masters into the training precision.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"

namespace fastserve::gpu {

/// to[r][c] = T(from[r][c]); what lies between cols and to_ld is left alone.
///
/// Grid: rows. Block: any. Bits: one rounding.
template <class T>
__global__ void convert_rows(const float* from, int from_ld, T* to, int to_ld, int cols) {
  const int row = blockIdx.x;
  for (int c = threadIdx.x; c < cols; c += blockDim.x)
    to[at(row, to_ld, c)] = from_float<T>(from[at(row, from_ld, c)]);
}

}  // namespace fastserve::gpu
