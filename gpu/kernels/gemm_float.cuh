// Matrix products of floats, with ordinary multiply-adds: for fp32 jobs and calibration.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"

namespace fastserve::gpu {

constexpr int kFloatTile = 64, kFloatDepth = 16, kFloatLd = kFloatTile + 4;
constexpr size_t kFloatGemmShared = 2 * kFloatDepth * kFloatLd * sizeof(float);

/// One element of an operand; zero past its end. `outer` counts m or n.
FS_DEVICE float float_element(const float* from, int ld, bool depth_first, int outer, int depth,
                              int depth_end) {
  if (outer < 0 || depth >= depth_end) return 0.0f;
  return depth_first ? from[at(depth, ld, outer)] : from[at(outer, ld, depth)];
}

/// out = epilogue(a b) as matmul_engine.h says.
///
/// Grid:   (tiles of columns, tiles of rows), 64 each. Block: 256. Shared: kFloatGemmShared.
/// Bits:   each element is one chain of fused multiply-adds over k.
template <ProductKind kKind>
__global__ void __launch_bounds__(256) gemm_float(ProductArguments p) {
  constexpr bool kDepthFirstA = kKind == ProductKind::kWeightGrad;
  constexpr bool kDepthFirstB = kKind != ProductKind::kForward;
  FS_SHARED(float, shared);
  float* const a = shared;  // [depth][outer], both
  float* const b = shared + kFloatDepth * kFloatLd;
  const int row = blockIdx.y * kFloatTile, col = blockIdx.x * kFloatTile;
  const int down = threadIdx.x / 16 * 4;
  // Two neighbours and the two eight columns on, so that a gate meets its up.
  const int across = threadIdx.x % 16 / 4 * 16 + threadIdx.x % 4 * 2;
  const auto column = [&](int j) { return across + (j & 1) + (j >> 1) * 8; };
  float acc[4][4] = {};
  for (int depth = 0; depth < p.k; depth += kFloatDepth) {
    for (int i = threadIdx.x; i < kFloatTile * kFloatDepth; i += 256) {
      const int o_a = kDepthFirstA ? i % kFloatTile : i / kFloatDepth;
      const int d_a = kDepthFirstA ? i / kFloatTile : i % kFloatDepth;
      a[d_a * kFloatLd + o_a] = float_element(static_cast<const float*>(p.a), p.lda, kDepthFirstA,
                                              row + o_a < p.m ? row + o_a : -1, depth + d_a, p.k);
      const int o_b = kDepthFirstB ? i % kFloatTile : i / kFloatDepth;
      const int d_b = kDepthFirstB ? i / kFloatTile : i % kFloatDepth;
      b[d_b * kFloatLd + o_b] = float_element(static_cast<const float*>(p.b), p.ldb, kDepthFirstB,
                                              weight_row(p, col + o_b), depth + d_b, p.k);
    }
    __syncthreads();
    const int end = p.k - depth < kFloatDepth ? p.k - depth : kFloatDepth;
    for (int d = 0; d < end; ++d) FS_UNROLL
    for (int i = 0; i < 4; ++i) FS_UNROLL
    for (int j = 0; j < 4; ++j)
      acc[i][j] = fmaf(a[d * kFloatLd + down + i], b[d * kFloatLd + column(j)], acc[i][j]);
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) {
    const int r = row + down + i;
    const int c = col + across;
    if (!goes_with(kKind, ProductEpilogue::kSwiGlu) || p.epilogue != ProductEpilogue::kSwiGlu) {
      finish<kKind, float>(p, r, c, acc[i][0], acc[i][1]);
      finish<kKind, float>(p, r, c + 8, acc[i][2], acc[i][3]);
    } else {
      finish_gated<float>(p, r, c / 16 * 8 + c % 8, acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
    }
  }
}

}  // namespace fastserve::gpu
