// Flash attention, backward: one kernel for queries and one for keys and values, so that every
// gradient is one chain and no atomics are needed; scores are computed in both.
#pragma once

#include "gpu/kernels/flash_tile.cuh"

namespace fastserve::gpu {

template <class T, int kDim>
constexpr size_t kFlashBackwardShared = 6 * HeadTile<T, kDim>::kElements * sizeof(T) +
                                        4 * kFlashRows * sizeof(float);

/// The gradient of queries.
///
/// Grid:   (tiles, heads). Block: kFlashThreads. Shared: kFlashBackwardShared<T, kDim>.
/// Needs:  as flash_forward; stats and delta. Bits: keys 64 at a time from the sequence's start.
template <class T, int kDim>
__global__ void __launch_bounds__(kFlashThreads)
    flash_dq(AttentionArguments p, const AttentionTile* tiles) {
  using Tile = HeadTile<T, kDim>;
  FS_SHARED(T, shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const AttentionTile me = tiles[blockIdx.x];
  const int head = blockIdx.y, kv = head / (p.heads / p.kv_heads), width = qkv_width(p);
  const T* const qkv = static_cast<const T*>(p.qkv);
  const T* const k = qkv + (p.heads + kv) * p.head_dim;
  const T* const v = k + p.kv_heads * p.head_dim;
  T* const q_tile = shared + 4 * Tile::kElements;
  T* const dout_tile = q_tile + Tile::kElements;
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
  Tile::load(dout_tile, static_cast<const T*>(p.dout) + head * p.head_dim, p.heads * p.head_dim,
             p.head_dim, me.first, me.end);
  load(0, begin);
  copy_commit();

  const int row = me.first + warp * 16 + (lane >> 2);
  float all[2], delta[2];
  FS_UNROLL
  for (int i = 0; i < 2; ++i) {
    const size_t stat = at(head, p.rows, row + i * 8 < me.end ? row + i * 8 : me.first);
    all[i] = p.stats[2 * stat];
    delta[i] = p.delta[stat];
  }
  float acc[kDim / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) load((step + 1) & 1, begin + (step + 1) * kFlashRows);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    const T* const k_tile = shared + (step & 1) * 2 * Tile::kElements;
    float s[8][4], ds[8][4];
    scores<T, kDim>(s, q_tile + warp * 16 * Tile::kLd, k_tile);
    scores<T, kDim>(ds, dout_tile + warp * 16 * Tile::kLd, k_tile + Tile::kElements);
    FS_UNROLL
    for (int n = 0; n < 8; ++n) {
      FS_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int key = begin + step * kFlashRows + n * 8 + (lane & 3) * 2 + (e & 1), i = e >> 1;
        const bool seen = row + i * 8 < me.end && sees(p, row + i * 8, key);
        ds[n][e] = seen ? exp2f(s[n][e] * p.scale * kLog2E - all[i]) * (ds[n][e] - delta[i]) : 0.0f;
      }
    }
    weigh<T, kDim>(acc, ds, k_tile);
    __syncthreads();  // this buffer is filled next
  }
  const float scale[2] = {p.scale, p.scale};
  store_rows<T, kDim>(acc, scale, static_cast<T*>(p.dqkv) + head * p.head_dim, width, p.head_dim,
                      me.first + warp * 16, me.end);
}

/// The gradients of keys and values.
///
/// Grid:   (tiles, kv_heads). Block: kFlashThreads. Shared: kFlashBackwardShared<T, kDim>.
/// Needs:  as flash_dq.
/// Bits:   query heads of the group in order, queries 64 at a time from the tile's first row.
template <class T, int kDim>
__global__ void __launch_bounds__(kFlashThreads)
    flash_dkv(AttentionArguments p, const AttentionTile* tiles) {
  using Tile = HeadTile<T, kDim>;
  FS_SHARED(T, shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const AttentionTile me = tiles[blockIdx.x];
  const int kv = blockIdx.y, group = p.heads / p.kv_heads, width = qkv_width(p);
  const T* const qkv = static_cast<const T*>(p.qkv);
  T* const k_tile = shared + 4 * Tile::kElements;
  T* const v_tile = k_tile + Tile::kElements;
  float* const stats = reinterpret_cast<float*>(v_tile + Tile::kElements);  // [2][2][64]
  const int key_end = me.first + kFlashRows < me.end ? me.first + kFlashRows : me.end;
  const int query_end = end_seeing(p, key_end - 1, me.end);
  const int tiles_each = (query_end - me.first + kFlashRows - 1) / kFlashRows;
  const int steps = tiles_each * group;
  // Queries and their dout, with the logarithm of their sums and delta.
  const auto load = [&](int step) {
    const int head = kv * group + step / tiles_each;
    const int first = me.first + step % tiles_each * kFlashRows;
    T* const to = shared + (step & 1) * 2 * Tile::kElements;
    Tile::load(to, qkv + head * p.head_dim, width, p.head_dim, first, me.end);
    Tile::load(to + Tile::kElements, static_cast<const T*>(p.dout) + head * p.head_dim,
               p.heads * p.head_dim, p.head_dim, first, me.end);
    const int row = first + (threadIdx.x & 63);
    const size_t stat = at(head, p.rows, row < me.end ? row : me.first);
    stats[(step & 1) * 2 * kFlashRows + threadIdx.x] =
        threadIdx.x < kFlashRows ? p.stats[2 * stat] : p.delta[stat];
  };
  const T* const k = qkv + (p.heads + kv) * p.head_dim;
  Tile::load(k_tile, k, width, p.head_dim, me.first, me.end);
  Tile::load(v_tile, k + p.kv_heads * p.head_dim, width, p.head_dim, me.first, me.end);
  load(0);
  copy_commit();

  const int key = me.first + warp * 16 + (lane >> 2);
  float dk[kDim / 8][4] = {}, dv[kDim / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) load(step + 1);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    const T* const q_tile = shared + (step & 1) * 2 * Tile::kElements;
    const float* const all = stats + (step & 1) * 2 * kFlashRows;
    float w[8][4], ds[8][4];
    scores<T, kDim>(w, k_tile + warp * 16 * Tile::kLd, q_tile);
    scores<T, kDim>(ds, v_tile + warp * 16 * Tile::kLd, q_tile + Tile::kElements);
    FS_UNROLL
    for (int n = 0; n < 8; ++n) {
      FS_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int c = n * 8 + (lane & 3) * 2 + (e & 1);
        const int query = me.first + step % tiles_each * kFlashRows + c;
        const bool seen = query < me.end && sees(p, query, key + (e >> 1) * 8);
        w[n][e] = seen ? exp2f(w[n][e] * p.scale * kLog2E - all[c]) : 0.0f;
        ds[n][e] = w[n][e] * (ds[n][e] - all[kFlashRows + c]);
      }
    }
    weigh<T, kDim>(dv, w, q_tile + Tile::kElements);
    weigh<T, kDim>(dk, ds, q_tile);
    __syncthreads();  // this buffer is filled next
  }
  const float scale[2] = {p.scale, p.scale}, one[2] = {1, 1};
  T* const out = static_cast<T*>(p.dqkv) + (p.heads + kv) * p.head_dim;
  store_rows<T, kDim>(dk, scale, out, width, p.head_dim, me.first + warp * 16, me.end);
  store_rows<T, kDim>(dv, one, out + p.kv_heads * p.head_dim, width, p.head_dim,
                      me.first + warp * 16, me.end);
}

}  // namespace fastserve::gpu
