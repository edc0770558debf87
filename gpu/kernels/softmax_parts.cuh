// Softmax of runs of positions, and their join into a row's.
#pragma once

#include "gpu/kernels/attention.cuh"
#include "gpu/kernels/decode_append.cuh"

namespace fastserve::gpu {

/// Softmax of a run of positions: the sum of 2^(score - peak).
struct Softmax {
  float peak, sum;
};
/// `mine` and `other` as one; what was weighed by each is multiplied by `keep` and `take`. Spelt
/// out, so that any kernel that joins in the same order has the same bits.
FS_DEVICE Softmax join(const Softmax& mine, const Softmax& other, float& keep, float& take) {
  const float peak = fmaxf(mine.peak, other.peak);
  keep = weight_of(mine.peak, peak);
  take = weight_of(other.peak, peak);
  return {peak, fmaf(other.sum, take, mine.sum * keep)};
}
FS_DEVICE float joined(float mine, float keep, float other, float take) {
  return fmaf(other, take, mine * keep);
}

constexpr uint32_t kNoSlot = ~uint32_t{0};  ///< of a position that is not looked at
constexpr int kJoinThreads = 128;
constexpr size_t kJoinShared = (4 * kJoinThreads + kJoinThreads / 32) * sizeof(float);

/// How kJoinThreads parts in a row meet what was joined before them.
struct JoinRoom {
  float *peaks, *sums, *keep, *take;  ///< [kJoinThreads]
  float* tops;                        ///< of warps
  FS_DEVICE explicit JoinRoom(float* from)
      : peaks(from),
        sums(peaks + kJoinThreads),
        keep(sums + kJoinThreads),
        take(keep + kJoinThreads),
        tops(take + kJoinThreads) {}

  /// This thread's part's factors: peaks so far are maxima of all in front, which have no order.
  FS_DEVICE void meet(float before, const Softmax& part) const {
    const int i = threadIdx.x, lane = i & 31;
    float top = part.peak;
    FS_UNROLL
    for (int by = 1; by < 32; by <<= 1) {
      const float other = __shfl_up_sync(kWholeWarp, top, unsigned(by));
      if (lane >= by) top = fmaxf(top, other);
    }
    if (lane == 31) tops[i / 32] = top;
    sync_first<kJoinThreads>();
    for (int w = 0; w < i / 32; ++w) top = fmaxf(top, tops[w]);
    peaks[i] = top = fmaxf(top, before);
    sums[i] = part.sum;
    sync_first<kJoinThreads>();
    keep[i] = weight_of(i == 0 ? before : peaks[i - 1], top);
    take[i] = weight_of(part.peak, top);
    sync_first<kJoinThreads>();
  }
};

/// Joins the parts of `each` positions that a row's blocks left of a head, in order. By the block's
/// first kJoinThreads threads, all of which call; `memory`: kJoinShared.
FS_DEVICE void join_head(const DecodeAttentionArguments& p, int row, int head, int each,
                         float* memory) {
  const JoinRoom room(memory);
  const int dim = p.head_dim;
  const int position = p.row[row].position;
  if (position < 0) return;
  const int first = p.window > 0 && position >= p.window ? position - p.window + 1 : 0;
  const int begin = first / each, end = position / each + 1;
  const float* const parts =
      p.partials + at(row, p.heads, head) * size_t(p.chunks) * size_t(dim + 2);
  for (int from = 0; from < dim; from += kJoinThreads) {
    const int d = from + int(threadIdx.x);
    float before = -INFINITY, sum = 0, acc = 0;
    for (int run = begin; run < end; run += kJoinThreads) {
      const int mine = run + int(threadIdx.x), count = end - run;
      Softmax part{-INFINITY, 0};
      if (mine < end) {
        const float* const its = parts + size_t(mine) * size_t(dim + 2) + dim;
        part = {its[0], its[1]};
      }
      room.meet(before, part);
      constexpr int kAhead = 16;  // loads on their way
      for (int i = 0; d < dim && i < kJoinThreads && i < count; i += kAhead) {
        float values[kAhead];
        FS_UNROLL
        for (int k = 0; k < kAhead; ++k)
          values[k] = i + k < count ? parts[size_t(run + i + k) * size_t(dim + 2) + size_t(d)] : 0;
        FS_UNROLL
        for (int k = 0; k < kAhead; ++k) {
          if (i + k >= count) break;
          const float keep = room.keep[i + k], take = room.take[i + k];
          sum = fmaf(room.sums[i + k], take, sum * keep);
          acc = joined(acc, keep, values[k], take);
        }
      }
      before = room.peaks[kJoinThreads - 1];
      sync_first<kJoinThreads>();  // the room is used again
    }
    if (d < dim) p.out[at(row, p.heads * dim, head * dim + d)] = acc / sum;
  }
}

}  // namespace fastserve::gpu
