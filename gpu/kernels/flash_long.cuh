// Flash attention, backward, for keys and values of heads above 128: gradients of whole rows do not
// fit in a warp's registers, so that two warps share 16 rows.
#pragma once

#include "gpu/kernels/flash_backward.cuh"

namespace fastserve::gpu {

/// Heads above 128: a block's eight warps are four pairs.
template <class T, int kDim>
struct LongKeyShape : FlashShape<kDim, 4, 1, 32, 2> {
  using Tiles = FlashShape<kDim, 4, 1, 32, 2>;
  static constexpr int kThreads = 2 * Tiles::kThreads;
  static constexpr int kHalf = kDim / 2;              ///< columns of gradients that a warp keeps
  static constexpr int kWeightLd = Tiles::kStep + 8;  ///< of weights in shared memory
  static constexpr int kWeights = Tiles::kRows * kWeightLd;
  static constexpr size_t kRing = Tiles::kStages * 2 * Tiles::kOther;
  static constexpr size_t kShared = (kRing + 2 * Tiles::kOwn + 2 * kWeights) * sizeof(T) +
                                    Tiles::kStages * Tiles::kStep * sizeof(float2);
};

/// Puts 16 rows of 16 weights where the other warp of a pair reads them, rounded to T.
template <class T>
FS_DEVICE void share_weights(const float (&w)[1][2][4], T* to, int ld) {
  const int lane = threadIdx.x & 31;
  FS_UNROLL
  for (int n = 0; n < 2; ++n) {
    FS_UNROLL
    for (int i = 0; i < 2; ++i)
      *reinterpret_cast<uint32_t*>(to + ((lane >> 2) + i * 8) * ld + n * 8 + (lane & 3) * 2) =
          pack_two<T>(w[0][n][2 * i], w[0][n][2 * i + 1]);
  }
}

/// acc [16, 8 kColumns] += w b: w [16, 16 kDepths] of shared memory, b as in weigh().
template <class T, int kDim, int kDepths, int kColumns>
FS_DEVICE void weigh_shared(float (&acc)[kColumns][4], const T* w, int w_ld, const T* b) {
  constexpr int kLd = kDim + 8;
  const int lane = threadIdx.x & 31;
  const T* const mine = b + (lane & 15) * kLd + (lane >> 4) * 8;
  FS_UNROLL
  for (int d = 0; d < kDepths; ++d) {
    uint32_t fa[4];
    load_matrix(fa, w + (lane & 15) * w_ld + (lane >> 4) * 8 + d * 16);
    FS_UNROLL
    for (int n = 0; n < kColumns; n += 2) {
      uint32_t fb[4];
      load_matrix_transposed(fb, mine + d * 16 * kLd + n * 8);
      mma(T{}, acc[n], fa, fb[0], fb[1]);
      mma(T{}, acc[n + 1], fa, fb[2], fb[3]);
    }
  }
}

/// The gradients of keys and values.
///
/// Grid:   (tiles, kv_heads). Block: kThreads: warps w and w + 4 own the same 16 keys; each
///         finds the weights of half of a step's queries, and keeps half of the columns of both
///         gradients. Shared: LongKeyShape::kShared.
/// Needs:  flash_dq before it.
/// Bits:   query heads of the group in order, queries kStep at a time from the tile's first row.
template <class T, int kDim>
__global__ void __launch_bounds__(LongKeyShape<T, kDim>::kThreads)
    flash_dkv_long(AttentionArguments p, const float2* pairs, const AttentionTile* tiles) {
  using Shape = LongKeyShape<T, kDim>;
  constexpr int kColumns = Shape::kHalf / 8;
  FS_SHARED(T, shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, half = warp / 4;
  const AttentionTile me = tiles[blockIdx.x];
  const int kv = blockIdx.y, group = p.heads / p.kv_heads;
  const HeadColumns<T> own(p, kv * group, kv);
  T* const k_tile = shared + Shape::kRing;
  T* const v_tile = k_tile + Shape::kOwn;
  T* const w_tile = v_tile + Shape::kOwn + warp % 4 * 16 * Shape::kWeightLd;
  T* const ds_tile = w_tile + Shape::kWeights;
  QueryRing<T, kDim, Shape> ring(
      p, pairs, me, kv * group, kv, shared,
      reinterpret_cast<float2*>(v_tile + Shape::kOwn + 2 * Shape::kWeights));
  load_rows<Shape::kRows, kDim, Shape::kThreads>(k_tile, own.keys(p), own.width, p.head_dim,
                                                 me.first, me.end);
  load_rows<Shape::kRows, kDim, Shape::kThreads>(v_tile, own.values(p), own.width, p.head_dim,
                                                 me.first, me.end);
  copy_commit();
  ring.load_next();
  copy_commit();
  copy_wait<1>();
  __syncthreads();
  const OwnRows<T, kDim, 1, true> keys(k_tile + warp % 4 * 16 * Shape::kLd);
  const OwnRows<T, kDim, 1, false> values(v_tile + warp % 4 * 16 * Shape::kLd);

  const int first = me.first + warp % 4 * 16, last = first + 15;
  const float scale = p.scale * kLog2E;
  int query = me.first;
  float dk[kColumns][4] = {}, dv[kColumns][4] = {};
  for (int step = 0; step < ring.steps(); ++step) {
    copy_wait<0>();
    __syncthreads();  // what is filled next has been read by all, weights too
    ring.load_next();
    copy_commit();
    const int here = query, mine = here + half * 16;
    query = here + Shape::kStep < ring.end() ? here + Shape::kStep : me.first;
    const T* const q_tile = ring.queries(step);
    const T* const dout_tile = ring.gradients(step);
    const Sight seen = sight(p, mine, mine + 15, first, last);
    float w[1][2][4] = {}, ds[1][2][4] = {};
    if (seen != Sight::kNone) {
      scores(w, keys, q_tile + half * 16 * Shape::kLd);
      scores(ds, values, dout_tile + half * 16 * Shape::kLd);
      FS_UNROLL
      for (int n = 0; n < 2; ++n) {
        const float4 two =
            *reinterpret_cast<const float4*>(ring.pairs(step) + half * 16 + n * 8 + (lane & 3) * 2);
        FS_UNROLL
        for (int e = 0; e < 4; ++e) {
          w[0][n][e] = fast_exp2(fmaf(w[0][n][e], scale, -(e & 1 ? two.z : two.x)));
          if (seen == Sight::kSome &&
              !sees(p, mine + n * 8 + (lane & 3) * 2 + (e & 1), first + (lane >> 2) + (e >> 1) * 8))
            w[0][n][e] = 0;
          ds[0][n][e] = w[0][n][e] * (ds[0][n][e] - (e & 1 ? two.w : two.y));
        }
      }
    }
    share_weights(w, w_tile + half * 16, Shape::kWeightLd);
    share_weights(ds, ds_tile + half * 16, Shape::kWeightLd);
    __syncthreads();  // weights of both halves are there
    if (sight(p, here, here + Shape::kStep - 1, first, last) == Sight::kNone) continue;
    constexpr int kDepths = Shape::kStep / 16;
    weigh_shared<T, kDim, kDepths>(dv, w_tile, Shape::kWeightLd, dout_tile + half * Shape::kHalf);
    weigh_shared<T, kDim, kDepths>(dk, ds_tile, Shape::kWeightLd, q_tile + half * Shape::kHalf);
  }
  const float scales[2] = {p.scale, p.scale}, one[2] = {1, 1};
  T* const out = static_cast<T*>(p.dqkv) + half * Shape::kHalf;
  const int columns = p.head_dim - half * Shape::kHalf;
  store_rows(dk, scales, out + own.k, own.width, columns, first, me.end);
  store_rows(dv, one, out + own.v, own.width, columns, first, me.end);
}

/// The kernel that a head's keys and values take.
template <class T, int kDim>
struct KeyGradients {
  using Shape = KeyShape<T, kDim>;
  static constexpr auto kKernel = &flash_dkv<T, kDim>;
};
template <class T, int kDim>
requires(kDim > 128) struct KeyGradients<T, kDim> {
  using Shape = LongKeyShape<T, kDim>;
  static constexpr auto kKernel = &flash_dkv_long<T, kDim>;
};

}  // namespace fastserve::gpu
