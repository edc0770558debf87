// Softmax cross-entropy of rows of float logits.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"
#include "gpu/kernels/reduce.cuh"
#include "gpu/kernels/wide.cuh"

namespace fastserve::gpu {

/// A running maximum of logits, in units of log 2, and the sum of 2^(logit - maximum).
struct RunningSoftmax {
  float peak = -INFINITY, sum = 0;

  /// Takes the first `count` numbers of x.
  template <int kWide>
  FS_DEVICE void take(const Wide<kWide>& x, int count) {
    float top = x.v[0];
    FS_UNROLL
    for (int i = 1; i < kWide; ++i)
      if (i < count) top = fmaxf(top, x.v[i]);
    top *= kLog2E;
    if (top > peak) {
      sum *= exp2f(peak - top);
      peak = top;
    }
    const float base = peak == -INFINITY ? 0.0f : peak;  // all of them may be masked
    FS_UNROLL
    for (int i = 0; i < kWide; ++i)
      if (i < count) sum += exp2f(fmaf(x.v[i], kLog2E, -base));
  }
};

/// Threads that a row is worth.
constexpr int kFewThreads = 256, kManyThreads = 1024, kManyColumns = 8192;
constexpr size_t kClassifierShared = 2 * 32 * sizeof(float);

/// losses[r] = log(sum exp(logits)) - logits[target], 0 where the target is -1; with `dlogits`, row
/// r = (softmax - onehot) * scale, zero past the vocabulary and where not counted.
///
/// Grid: rows. Block: kThreads. Shared: kClassifierShared.
/// Needs: kWide > 1: logits and dlogits on 16 bytes, ld and dlogits_ld multiples of kWide.
/// Bits: thread t takes kWide columns of every kThreads * kWide; a running maximum with its sum,
/// then a fixed tree.
template <class T, int kWide, int kThreads>
__global__ void __launch_bounds__(kThreads)
    classifier_loss(const float* logits, int vocab, int ld, const int32_t* targets, double* losses,
                    T* dlogits, int dlogits_ld, float scale) {
  constexpr int kAcross = kThreads * kWide;
  FS_SHARED(float, room);
  const int row = blockIdx.x, target = targets[row], own = threadIdx.x * kWide;
  const float* const x = logits + at(row, ld);
  T* const dx = dlogits ? dlogits + at(row, dlogits_ld) : nullptr;
  if (target < 0) {
    if (threadIdx.x == 0) losses[row] = 0;
    if (dx)
      for (int c = own; c < dlogits_ld; c += kAcross) store_wide(dx + c, Wide<kWide>{});
    return;
  }
  RunningSoftmax mine;
  const int whole = vocab / kWide * kWide;  // what follows it lies inside ld, and is not looked at
  for (int c = own; c < whole; c += kAcross) mine.take(load_wide<kWide>(x + c), kWide);
  if (whole < vocab && own == whole % kAcross)
    mine.take(load_wide<kWide>(x + whole), vocab - whole);
  const float all = block_reduce<Max>(mine.peak, room);
  const float sum = block_reduce<Add>(mine.sum == 0 ? 0.0f : mine.sum * exp2f(mine.peak - all),
                                      room + kThreads / 32);
  if (threadIdx.x == 0)
    losses[row] = double(all) / double(kLog2E) + log(double(sum)) - double(x[target]);
  if (!dx) return;
  const float by = scale / sum;
  for (int c = own; c < dlogits_ld; c += kAcross) {
    Wide<kWide> d = c < vocab ? load_wide<kWide>(x + c) : Wide<kWide>{};
    FS_UNROLL
    for (int i = 0; i < kWide; ++i) {
      d.v[i] = exp2f(fmaf(d.v[i], kLog2E, -all)) * by;
      if (c + i == target) d.v[i] -= scale;
      if (c + i >= vocab) d.v[i] = 0;
    }
    store_wide(dx + c, d);
  }
}

}  // namespace fastserve::gpu
