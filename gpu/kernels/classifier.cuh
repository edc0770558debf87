// Softmax cross-entropy of rows of logits, and the gradient in their place.
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
      sum *= fast_exp2(peak - top);
      peak = top;
    }
    const float base = peak == -INFINITY ? 0.0f : peak;  // all of them may be masked
    FS_UNROLL
    for (int i = 0; i < kWide; ++i)
      if (i < count) sum += fast_exp2(fmaf(x.v[i], kLog2E, -base));
  }
};

/// Short rows leave most of many threads without work; of long ones two blocks share a
/// multiprocessor, one of which reads while the other computes and writes.
constexpr int kClassifierThreads = 256, kLongThreads = 512;
constexpr size_t kClassifierShared = 3 * 32 * sizeof(float);

struct ClassifierArguments {
  void* logits;  ///< of the kernel's type [rows, ld]
  int vocab, ld;
  const int32_t* targets;
  double* losses;
  bool gradient = false;  ///< in the logits' place
  float scale = 0;
  int held = 0;  ///< columns that a block keeps in shared memory; a multiple of kWide, or 0
  // Of logits that were rounded the target's is computed again; null for floats.
  const void *x = nullptr, *head = nullptr;  ///< of the kernel's type: [rows, in], [vocab, head_ld]
  int in = 0, head_ld = 0;
};

/// body(c, numbers) for each kWide columns that the thread owns, of every kThreads * kWide, up to
/// `count`: the first p.held from `row`, which lies in shared memory.
template <int kWide, int kThreads, class T, class Body>
FS_DEVICE void each_own(const ClassifierArguments& p, const T* logits, const T* row, int count,
                        const Body& body) {
  const int held = p.held < count ? p.held : count;
  int c = threadIdx.x * kWide;
  for (; c < held; c += kThreads * kWide) body(c, load_wide<kWide>(row + c));
  for (; c < count; c += kThreads * kWide) body(c, load_wide<kWide>(logits + c));
}

/// This thread's part of the target's logit: the block's sum of them is it.
template <int kThreads, class T>
FS_DEVICE float part_of_target(const ClassifierArguments& p, const T* logits, int target) {
  if (p.x == nullptr) return threadIdx.x == 0 ? as_float(logits[target]) : 0.0f;
  const T* const x = static_cast<const T*>(p.x) + at(blockIdx.x, p.in);
  const T* const w = static_cast<const T*>(p.head) + at(target, p.head_ld);
  float sum = 0;
  for (int i = threadIdx.x; i < p.in; i += kThreads)
    sum = fmaf(as_float(x[i]), as_float(w[i]), sum);
  return sum;
}

/// A row that is not counted: no loss, and no gradient.
template <int kWide, int kThreads, class T>
FS_DEVICE void leave_row(const ClassifierArguments& p, T* logits) {
  if (threadIdx.x == 0) p.losses[blockIdx.x] = 0;
  if (!p.gradient) return;
  for (int c = threadIdx.x * kWide; c < p.ld; c += kThreads * kWide)
    store_wide(logits + c, Wide<kWide>{});
}

/// losses[r] = log(sum exp(logits)) - logits[target], 0 where the target is -1; with `gradient`,
/// row r becomes (softmax - onehot) * scale, zero past the vocabulary and where not counted.
///
/// A thread reads what it has copied to shared memory itself, and writes only columns that it alone
/// reads: but for the target's, which all wait for.
///
/// Grid: rows. Block: kThreads. Shared: kClassifierShared + held numbers of T.
/// Needs: kWide > 1: logits on 16 bytes and ld a multiple of kWide; held > 0: kWide numbers of T
/// are 16 bytes. Bits: thread t takes kWide columns of every kThreads * kWide; a running maximum
/// with its sum, then a fixed tree; the target joins last. What is held changes none.
template <class T, int kWide, int kThreads>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads)
    classifier_loss(ClassifierArguments p) {
  FS_SHARED(float, room);
  constexpr int kWarps = kThreads / 32;
  const int target = p.targets[blockIdx.x], own = threadIdx.x * kWide;
  T* const logits = static_cast<T*>(p.logits) + at(blockIdx.x, p.ld);
  if (target < 0) return leave_row<kWide, kThreads>(p, logits);
  T* const row = reinterpret_cast<T*>(room + kClassifierShared / sizeof(float));
  if constexpr (kWide * sizeof(T) == 16) {
    for (int c = own; c < p.held; c += kThreads * kWide) copy_async(row + c, logits + c, 16);
    copy_commit();
  }
  const float part = warp_reduce<Add>(part_of_target<kThreads>(p, logits, target));
  copy_wait<0>();
  RunningSoftmax mine;
  each_own<kWide, kThreads>(p, logits, row, p.vocab, [&](int c, Wide<kWide> x) {
    if (unsigned(target - c) < unsigned(kWide)) {
      FS_UNROLL
      for (int i = 0; i < kWide; ++i)
        if (c + i == target) x.v[i] = -INFINITY;
    }
    // What follows the vocabulary lies inside ld, and is not looked at.
    mine.take(x, c + kWide <= p.vocab ? kWide : p.vocab - c);
  });
  const float top = warp_reduce<Max>(mine.peak);
  if (threadIdx.x % 32 == 0) {
    room[threadIdx.x / 32] = top;
    room[32 + threadIdx.x / 32] = part;
  }
  __syncthreads();
  float all = room[0], right = room[32];
  for (int w = 1; w < kWarps; ++w) {
    all = fmaxf(all, room[w]);
    right += room[32 + w];
  }
  all = fmaxf(all, right * kLog2E);
  const float others =
      block_reduce<Add>(mine.sum == 0 ? 0.0f : mine.sum * fast_exp2(mine.peak - all), room + 64);
  const float sum = others + fast_exp2(fmaf(right, kLog2E, -all));
  if (threadIdx.x == 0)
    p.losses[blockIdx.x] = double(all) / double(kLog2E) + log(double(sum)) - double(right);
  if (!p.gradient) return;
  const float by = p.scale / sum;
  each_own<kWide, kThreads>(p, logits, row, p.ld, [&](int c, Wide<kWide> d) {
    FS_UNROLL
    for (int i = 0; i < kWide; ++i) d.v[i] = fast_exp2(fmaf(d.v[i], kLog2E, -all)) * by;
    if (unsigned(target - c) < unsigned(kWide) || c + kWide > p.vocab) {
      FS_UNROLL
      for (int i = 0; i < kWide; ++i) {
        if (c + i == target) d.v[i] = -others * by;
        if (c + i >= p.vocab) d.v[i] = 0;
      }
    }
    store_wide(logits + c, d);
  });
}

}  // namespace fastserve::gpu
