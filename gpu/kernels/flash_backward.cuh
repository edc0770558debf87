// Flash attention, backward: one kernel for queries and one for keys and values, so that every
// gradient is one chain and no atomics are needed; scores are computed in both.
#pragma once

#include "gpu/kernels/flash_tile.cuh"

namespace fastserve::gpu {

/// The gradient of queries.
///
/// Grid:   (tiles, heads). Block: kFlashThreads. Shared: FlashShape::kBackwardShared.
/// Needs:  as flash_forward; stats and delta. Bits: keys kStep at a time from the sequence's start.
template <class T, int kDim>
__global__ void __launch_bounds__(kFlashThreads)
    flash_dq(AttentionArguments p, const AttentionTile* tiles) {
  using Shape = FlashShape<T, kDim>;
  constexpr int kTiles = Shape::kStep / 8;
  FS_SHARED(T, shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, head = blockIdx.y;
  const AttentionTile me = tiles[blockIdx.x];
  const HeadColumns<T> heads(p, head);
  const KeyRing<T, kDim> ring(p, me, heads, shared);
  T* const q_tile = shared + 4 * Shape::kOther;
  T* const dout_tile = q_tile + Shape::kOwn;
  load_rows<kFlashRows, kDim>(q_tile, heads.queries(p), heads.width, p.head_dim, me.first, me.end);
  load_rows<kFlashRows, kDim>(dout_tile, heads.gradient(p), heads.out_width, p.head_dim, me.first,
                              me.end);
  ring.load(0);
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
  for (int step = 0; step < ring.steps(); ++step) {
    ring.load(step + 1);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    float s[kTiles][4], ds[kTiles][4];
    scores<T, kDim>(s, q_tile + warp * 16 * Shape::kLd, ring.keys(step));
    scores<T, kDim>(ds, dout_tile + warp * 16 * Shape::kLd, ring.values(step));
    FS_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      FS_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int key = ring.first(step) + n * 8 + (lane & 3) * 2 + (e & 1), i = e >> 1;
        const bool seen = row + i * 8 < me.end && sees(p, row + i * 8, key);
        ds[n][e] = seen ? exp2f(s[n][e] * p.scale * kLog2E - all[i]) * (ds[n][e] - delta[i]) : 0.0f;
      }
    }
    weigh<T, kDim>(acc, ds, ring.keys(step));
    __syncthreads();  // this buffer is filled next
  }
  const float scale[2] = {p.scale, p.scale};
  store_rows(acc, scale, static_cast<T*>(p.dqkv) + heads.q, heads.width, p.head_dim,
             me.first + warp * 16, me.end);
}

/// The gradients of keys and values.
///
/// Grid:   (tiles, kv_heads, kParts): a block keeps a part of head_dim's columns, and all of the
///         scores, so that gradients of long heads fit in registers. Block: kFlashThreads. Shared:
///         FlashShape::kBackwardShared.
/// Needs:  as flash_dq.
/// Bits:   query heads of the group in order, queries kStep at a time from the tile's first row.
template <class T, int kDim>
__global__ void __launch_bounds__(kFlashThreads)
    flash_dkv(AttentionArguments p, const AttentionTile* tiles) {
  using Shape = FlashShape<T, kDim>;
  constexpr int kTiles = Shape::kStep / 8, kColumns = Shape::kPart / 8;
  FS_SHARED(T, shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, part = blockIdx.z * Shape::kPart;
  const AttentionTile me = tiles[blockIdx.x];
  const int kv = blockIdx.y, group = p.heads / p.kv_heads;
  const HeadColumns<T> own(p, kv * group, kv);
  T* const k_tile = shared + 4 * Shape::kOther;
  T* const v_tile = k_tile + Shape::kOwn;
  float* const stats = reinterpret_cast<float*>(v_tile + Shape::kOwn);  // [2][2][kStep]
  const int key_end = me.first + kFlashRows < me.end ? me.first + kFlashRows : me.end;
  const int query_end = end_seeing(p, key_end - 1, me.end);
  const int tiles_each = (query_end - me.first + Shape::kStep - 1) / Shape::kStep;
  const int steps = tiles_each * group;
  // Queries and their dout, with the logarithm of their sums and delta.
  const auto load = [&](int step) {
    const HeadColumns<T> heads(p, kv * group + step / tiles_each, kv);
    const int first = me.first + step % tiles_each * Shape::kStep;
    T* const to = shared + (step & 1) * 2 * Shape::kOther;
    load_rows<Shape::kStep, kDim>(to, heads.queries(p), heads.width, p.head_dim, first, me.end);
    load_rows<Shape::kStep, kDim>(to + Shape::kOther, heads.gradient(p), heads.out_width,
                                  p.head_dim, first, me.end);
    if (threadIdx.x >= 2 * Shape::kStep) return;
    const int row = first + threadIdx.x % Shape::kStep;
    const size_t stat = at(kv * group + step / tiles_each, p.rows, row < me.end ? row : me.first);
    stats[(step & 1) * 2 * Shape::kStep + threadIdx.x] =
        threadIdx.x < Shape::kStep ? p.stats[2 * stat] : p.delta[stat];
  };
  load_rows<kFlashRows, kDim>(k_tile, own.keys(p), own.width, p.head_dim, me.first, me.end);
  load_rows<kFlashRows, kDim>(v_tile, own.values(p), own.width, p.head_dim, me.first, me.end);
  load(0);
  copy_commit();

  const int key = me.first + warp * 16 + (lane >> 2);
  float dk[kColumns][4] = {}, dv[kColumns][4] = {};
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) load(step + 1);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    const T* const q_tile = shared + (step & 1) * 2 * Shape::kOther;
    const T* const dout_tile = q_tile + Shape::kOther;
    const float* const all = stats + (step & 1) * 2 * Shape::kStep;
    float w[kTiles][4], ds[kTiles][4];
    scores<T, kDim>(w, k_tile + warp * 16 * Shape::kLd, q_tile);
    scores<T, kDim>(ds, v_tile + warp * 16 * Shape::kLd, dout_tile);
    FS_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      FS_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int c = n * 8 + (lane & 3) * 2 + (e & 1);
        const int query = me.first + step % tiles_each * Shape::kStep + c;
        const bool seen = query < me.end && sees(p, query, key + (e >> 1) * 8);
        w[n][e] = seen ? exp2f(w[n][e] * p.scale * kLog2E - all[c]) : 0.0f;
        ds[n][e] = w[n][e] * (ds[n][e] - all[Shape::kStep + c]);
      }
    }
    weigh<T, kDim>(dv, w, dout_tile + part);
    weigh<T, kDim>(dk, ds, q_tile + part);
    __syncthreads();  // this buffer is filled next
  }
  const float scale[2] = {p.scale, p.scale}, one[2] = {1, 1};
  T* const out = static_cast<T*>(p.dqkv) + part;
  store_rows(dk, scale, out + own.k, own.width, p.head_dim - part, me.first + warp * 16, me.end);
  store_rows(dv, one, out + own.v, own.width, p.head_dim - part, me.first + warp * 16, me.end);
}

}  // namespace fastserve::gpu
