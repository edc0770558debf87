// Flash attention (Dao 2023), forward, on mma.sync with double-buffered keys and values.
#pragma once

#include "gpu/kernels/flash_tile.cuh"

namespace fastserve::gpu {

template <class T, int kDim>
constexpr size_t kFlashForwardShared = 5 * HeadTile<T, kDim>::kElements * sizeof(T);

/// out = softmax(scale q k^T) v per head over packed sequences; stats as AttentionArguments says.
///
/// Grid:   (tiles, heads). Block: kFlashThreads. Shared: kFlashForwardShared<T, kDim>.
/// Needs:  head_dim a multiple of 8 up to kDim, qkv on 16 bytes.
/// Bits:   keys 64 at a time, counted from the sequence's start: neighbours change nothing.
template <class T, int kDim>
__global__ void __launch_bounds__(kFlashThreads)
    flash_forward(AttentionArguments p, const AttentionTile* tiles) {
  using Tile = HeadTile<T, kDim>;
  FS_SHARED(T, shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const AttentionTile me = tiles[blockIdx.x];
  const int head = blockIdx.y, kv = head / (p.heads / p.kv_heads), width = qkv_width(p);
  const T* const qkv = static_cast<const T*>(p.qkv);
  const T* const k = qkv + (p.heads + kv) * p.head_dim;
  const T* const v = k + p.kv_heads * p.head_dim;
  T* const q_tile = shared + 4 * Tile::kElements;
  const auto load = [&](int buffer, int first) {
    T* const to = shared + buffer * 2 * Tile::kElements;
    Tile::load(to, k, width, p.head_dim, first, me.end);
    Tile::load(to + Tile::kElements, v, width, p.head_dim, first, me.end);
  };
  const int last = me.first + kFlashRows < me.end ? me.first + kFlashRows : me.end;
  const int begin =
      me.start + (first_seen(p, me.first, me.start) - me.start) / kFlashRows * kFlashRows;
  const int steps = (last - begin + kFlashRows - 1) / kFlashRows;
  Tile::load(q_tile, qkv + head * p.head_dim, width, p.head_dim, me.first, me.end);
  load(0, begin);
  copy_commit();

  const float scale = p.scale * kLog2E;
  const int row = me.first + warp * 16 + (lane >> 2);
  float acc[kDim / 8][4] = {}, peak[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) load((step + 1) & 1, begin + (step + 1) * kFlashRows);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    const T* const k_tile = shared + (step & 1) * 2 * Tile::kElements;
    float s[8][4];
    scores<T, kDim>(s, q_tile + warp * 16 * Tile::kLd, k_tile);
    const int first = begin + step * kFlashRows;
    float top[2] = {peak[0], peak[1]};
    FS_UNROLL
    for (int n = 0; n < 8; ++n) {
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
    for (int n = 0; n < 8; ++n) {
      FS_UNROLL
      for (int e = 0; e < 4; ++e) {
        s[n][e] = weight_of(s[n][e], peak[e >> 1]);
        sum[e >> 1] += s[n][e];
      }
    }
    weigh<T, kDim>(acc, s, k_tile + Tile::kElements);
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
  store_rows<T, kDim>(acc, inverse, static_cast<T*>(p.out) + head * p.head_dim,
                      p.heads * p.head_dim, p.head_dim, me.first + warp * 16, me.end);
}

}  // namespace fastserve::gpu
