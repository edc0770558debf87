// Inference products with weights of float and half, by multiply-adds.
#pragma once

#include "gpu/kernels/packed_weights.cuh"
#include "gpu/kernels/reduce.cuh"
#include "gpu/kernels/wide.cuh"

namespace fastserve::gpu {

constexpr int kVectorWarps = 8, kVectorRows = 4;

/// y = x W^T for weights [out, in] of float or half and x of float: multiply-adds.
///
/// Grid:  (outputs or neurons / kVectorWarps, rows / kVectorRows), rounded up.
/// Block: 32 * kVectorWarps, a warp an output (a gate and its up).
/// Needs: kWide = 4: in and x_ld multiples of 4, x on 16 bytes.
/// Bits:  lane l takes kWide inputs of every 32 kWide; then the lanes by halves.
template <class W, int kWide>
__global__ void decode_vector_product(DecodeProductArguments p) {
  let_next_begin();
  wait_for_previous();
  const int lane = threadIdx.x & 31, first = blockIdx.y * kVectorRows;
  const bool gated = p.epilogue == DecodeEpilogue::kSwiGlu;
  const int outputs = gated ? p.out / 2 : p.out;
  const int o = blockIdx.x * kVectorWarps + threadIdx.x / 32;
  if (o >= outputs) return;
  const W* const weights = static_cast<const W*>(p.weights);
  const float* const x = static_cast<const float*>(p.x);
  float sums[2][kVectorRows] = {};
  for (int part = 0; part < (gated ? 2 : 1); ++part) {
    const W* const w = weights + at(part * outputs + o, p.in);
    for (int c = lane * kWide; c < p.in; c += 32 * kWide) {
      const Wide<kWide> weight = load_wide<kWide>(w + c);
      FS_UNROLL
      for (int r = 0; r < kVectorRows; ++r) {
        if (first + r >= p.rows) continue;
        const Wide<kWide> in = load_wide<kWide>(x + at(first + r, p.x_ld, c));
        FS_UNROLL
        for (int i = 0; i < kWide; ++i) sums[part][r] = fmaf(weight.v[i], in.v[i], sums[part][r]);
      }
    }
    FS_UNROLL
    for (int r = 0; r < kVectorRows; ++r) sums[part][r] = warp_reduce<Add>(sums[part][r]);
  }
  if (lane >= kVectorRows) return;
  float gate = 0, up = 0;  // of row `lane`, without indexing registers by it
  FS_UNROLL
  for (int r = 0; r < kVectorRows; ++r)
    if (r == lane) {
      gate = sums[0][r];
      up = sums[1][r];
    }
  if (gated)
    finish_decode_gated(p, first + lane, o, gate, up);
  else
    finish_decode(p, first + lane, o, gate);
}

}  // namespace fastserve::gpu
