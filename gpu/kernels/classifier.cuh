// Softmax cross-entropy of rows of float logits.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"
#include "gpu/kernels/reduce.cuh"
#include "gpu/kernels/wide.cuh"

namespace fastserve::gpu {

constexpr int kClassifierThreads = 256;

/// losses[r] = log(sum exp(logits)) - logits[target], 0 where the target is -1; with `dlogits`, row
/// r = (softmax - onehot) * scale, zero past the vocabulary and where not counted.
///
/// Grid: rows. Block: kClassifierThreads. Shared: 2 * 8 floats.
/// Needs: kWide = 4: logits and dlogits on 16 bytes, ld and dlogits_ld multiples of 4.
/// Bits: thread t takes kWide columns of every 256 kWide; a running maximum with its sum, then a
/// fixed tree.
template <class T, int kWide>
__global__ void classifier_loss(const float* logits, int vocab, int ld, const int32_t* targets,
                                double* losses, T* dlogits, int dlogits_ld, float scale) {
  FS_SHARED(float, room);
  const int row = blockIdx.x, target = targets[row];
  const float* const x = logits + at(row, ld);
  T* const dx = dlogits ? dlogits + at(row, dlogits_ld) : nullptr;
  if (target < 0) {
    if (threadIdx.x == 0) losses[row] = 0;
    if (dx)
      for (int c = threadIdx.x * kWide; c < dlogits_ld; c += kClassifierThreads * kWide)
        store_wide(dx + c, Wide<kWide>{});
    return;
  }
  float peak = -INFINITY, sum = 0;
  for (int c = threadIdx.x * kWide; c < vocab; c += kClassifierThreads * kWide) {
    const Wide<kWide> in =
        load_wide<kWide>(x + c);  // past the vocabulary: inside ld, not looked at
    FS_UNROLL
    for (int i = 0; i < kWide; ++i) {
      if (c + i >= vocab) continue;
      const float v = in.v[i];
      if (v > peak) {
        sum *= expf(peak - v);
        peak = v;
      }
      sum += expf(v - peak);
    }
  }
  const float all = block_reduce<Max>(peak, room);
  sum = block_reduce<Add>(peak == -INFINITY ? 0.0f : sum * expf(peak - all), room + 8);
  if (threadIdx.x == 0) losses[row] = double(all) + log(double(sum)) - double(x[target]);
  if (!dx) return;
  const float inverse = 1.0f / sum;
  for (int c = threadIdx.x * kWide; c < dlogits_ld; c += kClassifierThreads * kWide) {
    Wide<kWide> d = c < vocab ? load_wide<kWide>(x + c) : Wide<kWide>{};
    FS_UNROLL
    for (int i = 0; i < kWide; ++i)
      d.v[i] = c + i < vocab
                   ? (expf(d.v[i] - all) * inverse - (c + i == target ? 1.0f : 0.0f)) * scale
                   : 0.0f;
    store_wide(dx + c, d);
  }
}

}  // namespace fastserve::gpu
