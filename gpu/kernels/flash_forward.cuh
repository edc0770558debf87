// Flash attention (Dao 2023), forward, on mma.sync with double-buffered keys and values.
#pragma once

#include "gpu/kernels/flash_tile.cuh"

namespace fastserve::gpu {

/// out = softmax(scale q k^T) v per head over packed sequences; stats as AttentionArguments says.
///
/// Grid:   (tiles, heads). Block: kFlashThreads. Shared: FlashShape::kForwardShared.
/// Needs:  head_dim a multiple of 8 up to kDim, qkv on 16 bytes.
/// Bits:   keys kStep at a time, counted from the sequence's start: neighbours change nothing.
template <class T, int kDim>
__global__ void __launch_bounds__(kFlashThreads)
    flash_forward(AttentionArguments p, const AttentionTile* tiles) {
  using Shape = FlashShape<T, kDim>;
  constexpr int kTiles = Shape::kStep / 8;
  FS_SHARED(T, shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, head = blockIdx.y;
  const AttentionTile me = tiles[blockIdx.x];
  const HeadColumns<T> heads(p, head);
  const KeyRing<T, kDim> ring(p, me, heads, shared);
  T* const q_tile = shared + 4 * Shape::kOther;
  load_rows<kFlashRows, kDim>(q_tile, heads.queries(p), heads.width, p.head_dim, me.first, me.end);
  ring.load(0);
  copy_commit();

  const float scale = p.scale * kLog2E;
  const int row = me.first + warp * 16 + (lane >> 2);
  float acc[kDim / 8][4] = {}, peak[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  for (int step = 0; step < ring.steps(); ++step) {
    ring.load(step + 1);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    float s[kTiles][4];
    scores<T, kDim>(s, q_tile + warp * 16 * Shape::kLd, ring.keys(step));
    const int first = ring.first(step);
    float top[2] = {peak[0], peak[1]};
    FS_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      FS_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int key = first + n * 8 + (lane & 3) * 2 + (e & 1);
        s[n][e] = sees(p, row + (e >> 1) * 8, key) ? s[n][e] * scale : -INFINITY;
        top[e >> 1] = fmaxf(top[e >> 1], s[n][e]);
      }
    }
    FS_UNROLL
    for (int i = 0; i < 2; ++i) {
      top[i] = fmaxf(top[i], __shfl_xor_sync(kWholeWarp, top[i], 1));
      top[i] = fmaxf(top[i], __shfl_xor_sync(kWholeWarp, top[i], 2));
      const float kept = weight_of(peak[i], top[i]);
      peak[i] = top[i];
      sum[i] *= kept;
      FS_UNROLL
      for (int n = 0; n < kDim / 8; ++n) {
        acc[n][2 * i] *= kept;
        acc[n][2 * i + 1] *= kept;
      }
    }
    FS_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      FS_UNROLL
      for (int e = 0; e < 4; ++e) {
        s[n][e] = weight_of(s[n][e], peak[e >> 1]);
        sum[e >> 1] += s[n][e];
      }
    }
    weigh<T, kDim>(acc, s, ring.values(step));
    __syncthreads();  // this buffer is filled next
  }
  float inverse[2];
  FS_UNROLL
  for (int i = 0; i < 2; ++i) {
    sum[i] += __shfl_xor_sync(kWholeWarp, sum[i], 1);
    sum[i] += __shfl_xor_sync(kWholeWarp, sum[i], 2);
    inverse[i] = 1.0f / sum[i];
    if (p.stats && (lane & 3) == 0 && row + i * 8 < me.end)
      p.stats[2 * at(head, p.rows, row + i * 8)] = peak[i] + log2f(sum[i]);
  }
  store_rows(acc, inverse, static_cast<T*>(p.out) + heads.out, heads.out_width, p.head_dim,
             me.first + warp * 16, me.end);
}

}  // namespace fastserve::gpu
