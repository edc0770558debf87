// Softmax cross-entropy of rows of float logits.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"
#include "gpu/kernels/reduce.cuh"
#include "gpu/kernels/wide.cuh"
#include "gpu/simt/tensor_core.h"

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

constexpr int kClassifierThreads = 256, kHeldThreads = 1024;
constexpr size_t kClassifierShared = 2 * 32 * sizeof(float);
/// Bytes of shared memory that a row of logits takes in classifier_loss_held.
constexpr size_t held_logits(int ld) { return size_t(ld) * sizeof(float); }

struct ClassifierArguments {
  const float* logits;
  int vocab, ld;
  const int32_t* targets;
  double* losses;
  void* dlogits;  ///< or null
  int dlogits_ld;
  float scale;
};

/// What one block does with its row; `x` is where it reads logits. Every thread takes kWide columns
/// of each kThreads * kWide.
template <class T, int kWide, int kThreads>
FS_DEVICE void classify_row(const ClassifierArguments& p, const float* x, float* room) {
  constexpr int kAcross = kThreads * kWide;
  const int row = blockIdx.x, target = p.targets[row], own = threadIdx.x * kWide;
  const int whole =
      p.vocab / kWide * kWide;  // what follows it lies inside ld, and is not looked at
  RunningSoftmax mine;
  for (int c = own; c < whole; c += kAcross) mine.take(load_wide<kWide>(x + c), kWide);
  if (whole < p.vocab && own == whole % kAcross)
    mine.take(load_wide<kWide>(x + whole), p.vocab - whole);
  const float all = block_reduce<Max>(mine.peak, room);
  const float sum = block_reduce<Add>(mine.sum == 0 ? 0.0f : mine.sum * exp2f(mine.peak - all),
                                      room + kThreads / 32);
  if (own == target / kWide * kWide % kAcross)
    p.losses[row] = double(all) / double(kLog2E) + log(double(sum)) - double(x[target]);
  if (!p.dlogits) return;
  T* const dx = static_cast<T*>(p.dlogits) + at(row, p.dlogits_ld);
  const float by = p.scale / sum;
  for (int c = own; c < p.dlogits_ld; c += kAcross) {
    Wide<kWide> d = c < p.vocab ? load_wide<kWide>(x + c) : Wide<kWide>{};
    FS_UNROLL
    for (int i = 0; i < kWide; ++i) {
      d.v[i] = exp2f(fmaf(d.v[i], kLog2E, -all)) * by;
      if (c + i == target) d.v[i] -= p.scale;
      if (c + i >= p.vocab) d.v[i] = 0;
    }
    store_wide(dx + c, d);
  }
}

/// A row that is not counted: no loss, and no gradient. False where it is.
template <class T, int kWide, int kThreads>
FS_DEVICE bool leave_row(const ClassifierArguments& p) {
  const int row = blockIdx.x;
  if (p.targets[row] >= 0) return false;
  if (threadIdx.x == 0) p.losses[row] = 0;
  T* const dx = p.dlogits ? static_cast<T*>(p.dlogits) + at(row, p.dlogits_ld) : nullptr;
  for (int c = threadIdx.x * kWide; dx && c < p.dlogits_ld; c += kThreads * kWide)
    store_wide(dx + c, Wide<kWide>{});
  return true;
}

/// losses[r] = log(sum exp(logits)) - logits[target], 0 where the target is -1; with `dlogits`, row
/// r = (softmax - onehot) * scale, zero past the vocabulary and where not counted.
///
/// Grid: rows. Block: kClassifierThreads. Shared: kClassifierShared.
/// Needs: kWide > 1: logits and dlogits on 16 bytes, ld and dlogits_ld multiples of kWide.
/// Bits: thread t takes kWide columns of every kClassifierThreads * kWide; a running maximum with
/// its sum, then a fixed tree.
template <class T, int kWide>
__global__ void __launch_bounds__(kClassifierThreads) classifier_loss(ClassifierArguments p) {
  FS_SHARED(float, room);
  if (leave_row<T, kWide, kClassifierThreads>(p)) return;
  classify_row<T, kWide, kClassifierThreads>(p, p.logits + at(blockIdx.x, p.ld), room);
}

/// The same for long rows, each of which a block brings to shared memory at once: it is read once,
/// and all of it is on its way together. A thread reads what it has copied itself.
///
/// Grid: rows. Block: kHeldThreads. Shared: kClassifierShared + held_logits(ld).
/// Needs: as with kWide = 4. Bits: as there, with kHeldThreads.
template <class T>
__global__ void __launch_bounds__(kHeldThreads) classifier_loss_held(ClassifierArguments p) {
  FS_SHARED(float, room);
  if (leave_row<T, 4, kHeldThreads>(p)) return;
  const float* const from = p.logits + at(blockIdx.x, p.ld);
  float* const row = room + kClassifierShared / sizeof(float);
  for (int c = threadIdx.x * 4; c < p.ld; c += kHeldThreads * 4) copy_async(row + c, from + c, 16);
  copy_commit();
  copy_wait<0>();
  classify_row<T, 4, kHeldThreads>(p, row, room);
}

}  // namespace fastserve::gpu
