// Flash attention (Dao 2023), forward, on mma.sync with double-buffered keys and values.
#pragma once

#include "gpu/kernels/flash_tile.cuh"

namespace fastserve::gpu {

/// 32 rows a warp up to heads of 128. Longer ones have no registers for their output, but for 16
/// rows of queries, so that only keys and values are read from shared memory; there eight warps
/// share what comes from the L2 cache.
template <int kDim>
using ForwardTiles =
    FlashShape<kDim, (kDim <= 128 ? 4 : 8), (kDim <= 128 ? 2 : 1), (kDim <= 64 ? 64 : 32), 2>;
template <class T, int kDim>
struct ForwardShape : ForwardTiles<kDim> {
  using Tiles = ForwardTiles<kDim>;
  static constexpr bool kHeld = kDim <= 64 || kDim > 128;
  static constexpr size_t kRing = Tiles::kStages * 2 * Tiles::kOther;
  static constexpr size_t kShared = (kRing + Tiles::kOwn) * sizeof(T);
};

/// What a warp knows of its rows' scores so far: two rows of a lane in each fragment.
template <int kHigh>
struct SoftmaxRows {
  float peak[kHigh][2], sum[kHigh][2];

  /// Turns scores in units of log 2 into weights against the new peaks; what was summed before,
  /// `acc` with it, is scaled to those.
  template <int kTiles, int kColumns>
  FS_DEVICE void take(float (&s)[kHigh][kTiles][4], float (&acc)[kHigh][kColumns][4]) {
    FS_UNROLL
    for (int m = 0; m < kHigh; ++m) {
      float kept[2];
      FS_UNROLL
      for (int i = 0; i < 2; ++i) {
        float top = peak[m][i];
        FS_UNROLL
        for (int n = 0; n < kTiles; ++n)
          top = fmaxf(top, fmaxf(s[m][n][2 * i], s[m][n][2 * i + 1]));
        top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 1));
        top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 2));
        const float base = top == -INFINITY ? 0.0f : top;  // as long as all of a row is masked
        kept[i] = fast_exp2(peak[m][i] - base);
        peak[m][i] = top;
        sum[m][i] *= kept[i];
        FS_UNROLL
        for (int n = 0; n < kTiles; ++n) {
          FS_UNROLL
          for (int e = 2 * i; e < 2 * i + 2; ++e) {
            s[m][n][e] = fast_exp2(s[m][n][e] - base);
            sum[m][i] += s[m][n][e];
          }
        }
      }
      // Peaks seldom rise after the first steps, and a factor of 1 changes no bit.
      if (__ballot_sync(kWholeWarp, kept[0] != 1 || kept[1] != 1) == 0) continue;
      FS_UNROLL
      for (int n = 0; n < kColumns; ++n) {
        FS_UNROLL
        for (int e = 0; e < 4; ++e) acc[m][n][e] *= kept[e >> 1];
      }
    }
  }
};

/// out = softmax(scale q k^T) v per head over packed sequences; stats as AttentionArguments says.
///
/// Grid:   (tiles, heads). Block: ForwardShape::kThreads. Shared: kShared.
/// Needs:  head_dim a multiple of 8 up to kDim, qkv on 16 bytes.
/// Bits:   keys kStep at a time, counted from the sequence's start: neighbours change nothing.
template <class T, int kDim>
__global__ void __launch_bounds__(ForwardShape<T, kDim>::kThreads)
    flash_forward(AttentionArguments p, const AttentionTile* tiles) {
  using Shape = ForwardShape<T, kDim>;
  constexpr int kHigh = Shape::kHigh, kTiles = Shape::kTiles;
  FS_SHARED(T, shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, head = blockIdx.y;
  const AttentionTile me = tiles[blockIdx.x];
  const HeadColumns<T> heads(p, head);
  const KeyRing<T, kDim, Shape> ring(p, me, heads, shared);
  T* const q_tile = shared + Shape::kRing;
  load_rows<Shape::kRows, kDim, Shape::kThreads>(q_tile, heads.queries(p), heads.width, p.head_dim,
                                                 me.first, me.end);
  copy_commit();
  ring.load(0);
  copy_commit();
  copy_wait<1>();
  __syncthreads();
  const OwnRows<T, kDim, kHigh, Shape::kHeld> queries(q_tile + warp * 16 * kHigh * Shape::kLd);

  const float scale = p.scale * kLog2E;
  const int first = me.first + warp * 16 * kHigh, row = first + (lane >> 2);
  float acc[kHigh][kDim / 8][4] = {};
  SoftmaxRows<kHigh> rows;
  FS_UNROLL
  for (int m = 0; m < kHigh; ++m) {
    rows.peak[m][0] = rows.peak[m][1] = -INFINITY;
    rows.sum[m][0] = rows.sum[m][1] = 0;
  }
  for (int step = 0; step < ring.steps(); ++step) {
    copy_wait<0>();
    __syncthreads();  // what is filled next has been read by all
    ring.load(step + 1);
    copy_commit();
    const int key = ring.first(step);
    const Sight seen = sight(p, first, first + 16 * kHigh - 1, key, key + Shape::kStep - 1);
    if (seen == Sight::kNone) continue;
    float s[kHigh][kTiles][4];
    scores(s, queries, ring.keys(step));
    FS_UNROLL
    for (int m = 0; m < kHigh; ++m) {
      FS_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        FS_UNROLL
        for (int e = 0; e < 4; ++e) s[m][n][e] *= scale;
      }
    }
    if (seen == Sight::kSome)
      mask(s, -INFINITY, [&](int row, int column) { return sees(p, first + row, key + column); });
    rows.take(s, acc);
    weigh<T, kDim>(acc, s, ring.values(step));
  }
  FS_UNROLL
  for (int m = 0; m < kHigh; ++m) {
    float inverse[2];
    FS_UNROLL
    for (int i = 0; i < 2; ++i) {
      float sum = rows.sum[m][i];
      sum += __shfl_xor_sync(kWholeWarp, sum, 1);
      sum += __shfl_xor_sync(kWholeWarp, sum, 2);
      inverse[i] = 1.0f / sum;
      const int mine = row + m * 16 + i * 8;
      if (p.stats && (lane & 3) == 0 && mine < me.end)
        p.stats[2 * at(head, p.rows, mine)] = rows.peak[m][i] + log2f(sum);
    }
    store_rows(acc[m], inverse, static_cast<T*>(p.out) + heads.out, heads.out_width, p.head_dim,
               first + m * 16, me.end);
  }
}

}  // namespace fastserve::gpu
