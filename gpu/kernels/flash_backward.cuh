// Flash attention, backward: one kernel for queries and one for keys and values, so that every
// gradient is one chain and no atomics are needed; scores are computed in both.
#pragma once

#include "gpu/kernels/flash_tile.cuh"

namespace fastserve::gpu {

/// What a tile of queries walks over keys with. A warp has 255 registers: room for 32 rows of
/// gradients up to heads of 128. Above 192 steps are short, so that two blocks fit on a
/// multiprocessor.
template <int kDim>
using QueryTiles =
    FlashShape<kDim, 4, (kDim <= 128 ? 2 : 1), (kDim <= 192 ? 32 : 16), (kDim <= 64 ? 3 : 2)>;
template <class T, int kDim>
struct QueryShape : QueryTiles<kDim> {
  using Tiles = QueryTiles<kDim>;
  static constexpr bool kHeldQueries = kDim <= 64 || kDim > 128, kHeldGradients = kDim <= 64;
  static constexpr size_t kRing = Tiles::kStages * 2 * Tiles::kOther;
  static constexpr size_t kShared =
      (kRing + 2 * Tiles::kOwn) * sizeof(T) + Tiles::kRows * sizeof(float2);
};

/// What a tile of keys walks over queries with. Of both of its gradients there are 32 rows a warp
/// up to heads of 64; above, eight warps share what comes from the L2 cache. Above 128 see
/// flash_long.cuh.
template <int kDim>
using KeyTiles = FlashShape<kDim, (kDim <= 64 ? 4 : 8), (kDim <= 64 ? 2 : 1),
                            (kDim <= 64 ? 32 : 64), (kDim <= 64 ? 3 : 2)>;
template <class T, int kDim>
struct KeyShape : KeyTiles<kDim> {
  using Tiles = KeyTiles<kDim>;
  static constexpr size_t kRing = Tiles::kStages * 2 * Tiles::kOther;
  static constexpr size_t kShared =
      (kRing + 2 * Tiles::kOwn) * sizeof(T) + Tiles::kStages * Tiles::kStep * sizeof(float2);
};

/// Of each of a warp's rows stats' first number and delta, dout . out: what the gradients of their
/// scores need.
template <class T, int kDim, int kHigh>
class RowPairs {
 public:
  /// Reads `out`, so that it is on its way beside the tiles. The warp's rows begin at `first`.
  FS_DEVICE RowPairs(const AttentionArguments& p, const HeadColumns<T>& heads, int head, int first,
                     int end)
      : p_(p), c_(threadIdx.x % kLanes * 8), there_(lane() < 16 * kHigh && first + lane() < end) {
    const T* const out = static_cast<const T*>(p.out) + heads.out;
    FS_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int row = first + row_of(i);
      out_[i] = row < end && c_ < p.head_dim
                    ? *reinterpret_cast<const uint4*>(out + at(row, heads.out_width, c_))
                    : uint4{0, 0, 0, 0};
    }
    stat_ = at(head, p.rows, there_ ? first + lane() : first);
    pair_.x = there_ ? p.stats[2 * stat_] : 0;
  }
  /// `dout`: the warp's rows of a tile that is there. To `mine` (shared, of the warp alone), and
  /// for flash_dkv to `pairs`.
  FS_DEVICE void find(const T* dout, float2* mine, float2* pairs) {
    FS_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const uint4 a = c_ < p_.head_dim
                          ? *reinterpret_cast<const uint4*>(dout + row_of(i) * (kDim + 8) + c_)
                          : uint4{0, 0, 0, 0};
      const uint32_t x[4] = {a.x, a.y, a.z, a.w};
      const uint32_t y[4] = {out_[i].x, out_[i].y, out_[i].z, out_[i].w};
      float sum = 0;
      FS_UNROLL
      for (int k = 0; k < 4; ++k) {
        sum = fmaf(as_float(T{uint16_t(x[k])}), as_float(T{uint16_t(y[k])}), sum);
        sum = fmaf(as_float(T{uint16_t(x[k] >> 16)}), as_float(T{uint16_t(y[k] >> 16)}), sum);
      }
      FS_UNROLL
      for (int by = kLanes / 2; by > 0; by >>= 1) sum += __shfl_xor_sync(kWholeWarp, sum, by);
      if (c_ == 0) mine[row_of(i)].y = sum;
    }
    __syncwarp();
    if (lane() < 16 * kHigh) {
      pair_.y = mine[lane()].y;
      mine[lane()].x = pair_.x;
      if (there_) pairs[stat_] = pair_;
    }
    __syncwarp();
  }

 private:
  /// A group of lanes a row, 8 numbers each.
  static constexpr int kLanes = kDim <= 32 ? 4 : kDim <= 64 ? 8 : kDim <= 128 ? 16 : 32;
  static constexpr int kLoads = 16 * kHigh * kLanes / 32;
  static FS_DEVICE int lane() { return threadIdx.x & 31; }
  static FS_DEVICE int row_of(int load) { return (load * 32 + lane()) / kLanes; }

  const AttentionArguments& p_;
  int c_;
  bool there_;
  size_t stat_;
  float2 pair_;
  uint4 out_[kLoads];
};

/// The gradient of queries.
///
/// Grid:   (tiles, heads). Block: QueryShape::kThreads. Shared: kShared.
/// Needs:  as flash_forward, and out and dout on 16 bytes. Leaves `pairs` [heads, rows] for
///         flash_dkv. Bits: keys kStep at a time from the sequence's start.
template <class T, int kDim>
__global__ void __launch_bounds__(QueryShape<T, kDim>::kThreads)
    flash_dq(AttentionArguments p, float2* pairs, const AttentionTile* tiles) {
  using Shape = QueryShape<T, kDim>;
  constexpr int kHigh = Shape::kHigh, kTiles = Shape::kTiles;
  FS_SHARED(T, shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, head = blockIdx.y;
  const AttentionTile me = tiles[blockIdx.x];
  const HeadColumns<T> heads(p, head);
  const KeyRing<T, kDim, Shape> ring(p, me, heads, shared);
  T* const q_tile = shared + Shape::kRing;
  T* const dout_tile = q_tile + Shape::kOwn;
  load_rows<Shape::kRows, kDim, Shape::kThreads>(q_tile, heads.queries(p), heads.width, p.head_dim,
                                                 me.first, me.end);
  load_rows<Shape::kRows, kDim, Shape::kThreads>(dout_tile, heads.gradient(p), heads.out_width,
                                                 p.head_dim, me.first, me.end);
  copy_commit();
  FS_UNROLL
  for (int step = 0; step + 1 < Shape::kStages; ++step) {
    ring.load(step);
    copy_commit();
  }

  const int first = me.first + warp * 16 * kHigh;
  RowPairs<T, kDim, kHigh> own(p, heads, head, first, me.end);
  copy_wait<Shape::kStages - 1>();
  __syncthreads();
  const int mine_at = warp * 16 * kHigh * Shape::kLd;
  float2* const mine = reinterpret_cast<float2*>(dout_tile + Shape::kOwn) + warp * 16 * kHigh;
  own.find(dout_tile + mine_at, mine, pairs);
  float2 pair[kHigh][2];
  FS_UNROLL
  for (int m = 0; m < kHigh; ++m) {
    FS_UNROLL
    for (int i = 0; i < 2; ++i) pair[m][i] = mine[(lane >> 2) + m * 16 + i * 8];
  }
  const OwnRows<T, kDim, kHigh, Shape::kHeldQueries> queries(q_tile + mine_at);
  const OwnRows<T, kDim, kHigh, Shape::kHeldGradients> gradients(dout_tile + mine_at);
  const float scale = p.scale * kLog2E;
  float acc[kHigh][kDim / 8][4] = {};
  for (int step = 0; step < ring.steps(); ++step) {
    copy_wait<Shape::kStages - 2>();
    __syncthreads();  // what is filled next has been read by all
    ring.load(step + Shape::kStages - 1);
    copy_commit();
    const int key = ring.first(step);
    const Sight seen = sight(p, first, first + 16 * kHigh - 1, key, key + Shape::kStep - 1);
    if (seen == Sight::kNone) continue;
    float s[kHigh][kTiles][4], ds[kHigh][kTiles][4];
    scores(s, queries, ring.keys(step));
    scores(ds, gradients, ring.values(step));
    FS_UNROLL
    for (int m = 0; m < kHigh; ++m) {
      FS_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        FS_UNROLL
        for (int e = 0; e < 4; ++e)
          ds[m][n][e] = fast_exp2(fmaf(s[m][n][e], scale, -pair[m][e >> 1].x)) *
                        (ds[m][n][e] - pair[m][e >> 1].y);
      }
    }
    if (seen == Sight::kSome)
      mask(ds, 0, [&](int row, int column) { return sees(p, first + row, key + column); });
    weigh<T, kDim>(acc, ds, ring.keys(step));
  }
  const float scales[2] = {p.scale, p.scale};
  FS_UNROLL
  for (int m = 0; m < kHigh; ++m)
    store_rows(acc[m], scales, static_cast<T*>(p.dqkv) + heads.q, heads.width, p.head_dim,
               first + m * 16, me.end);
}

/// The queries that see a tile of keys, with their gradients and pairs: head after head of the
/// group, kStep at a time.
template <class T, int kDim, class Shape>
class QueryRing {
 public:
  FS_DEVICE QueryRing(const AttentionArguments& p, const float2* pairs, const AttentionTile& me,
                      int first_head, int kv, T* ring, float2* ring_pairs)
      : p_(p),
        from_(pairs),
        me_(me),
        ring_(ring),
        pairs_(ring_pairs),
        kv_(kv),
        head_(first_head),
        first_(me.first) {
    const int key_end = me.first + Shape::kRows < me.end ? me.first + Shape::kRows : me.end;
    end_ = end_seeing(p, key_end - 1, me.end);
    steps_ = (end_ - me.first + Shape::kStep - 1) / Shape::kStep * (p.heads / p.kv_heads);
  }
  FS_DEVICE int steps() const { return steps_; }
  /// Where queries of a head end.
  FS_DEVICE int end() const { return end_; }
  FS_DEVICE const T* queries(int step) const {
    return ring_ + step % Shape::kStages * 2 * Shape::kOther;
  }
  FS_DEVICE const T* gradients(int step) const { return queries(step) + Shape::kOther; }
  FS_DEVICE const float2* pairs(int step) const {
    return pairs_ + step % Shape::kStages * Shape::kStep;
  }
  /// The step after the one loaded last.
  FS_DEVICE void load_next() {
    if (loaded_ >= steps_) return;
    const HeadColumns<T> heads(p_, head_, kv_);
    T* const to = ring_ + loaded_ % Shape::kStages * 2 * Shape::kOther;
    load_rows<Shape::kStep, kDim, Shape::kThreads>(to, heads.queries(p_), heads.width, p_.head_dim,
                                                   first_, me_.end);
    load_rows<Shape::kStep, kDim, Shape::kThreads>(to + Shape::kOther, heads.gradient(p_),
                                                   heads.out_width, p_.head_dim, first_, me_.end);
    if (threadIdx.x < Shape::kStep) {
      const int row = first_ + threadIdx.x;
      const bool there = row < me_.end;
      copy_async_8(pairs_ + loaded_ % Shape::kStages * Shape::kStep + threadIdx.x,
                   from_ + at(head_, p_.rows, there ? row : me_.first), there);
    }
    ++loaded_;
    first_ += Shape::kStep;
    if (first_ < end_) return;
    first_ = me_.first;
    ++head_;
  }

 private:
  const AttentionArguments& p_;
  const float2* from_;
  const AttentionTile& me_;
  T* ring_;
  float2* pairs_;
  int kv_, head_, first_, end_, steps_, loaded_ = 0;
};

/// The gradients of keys and values.
///
/// Grid:   (tiles, kv_heads). Block: KeyShape::kThreads. Shared: kShared.
/// Needs:  flash_dq before it.
/// Bits:   query heads of the group in order, queries kStep at a time from the tile's first row.
template <class T, int kDim>
__global__ void __launch_bounds__(KeyShape<T, kDim>::kThreads)
    flash_dkv(AttentionArguments p, const float2* pairs, const AttentionTile* tiles) {
  using Shape = KeyShape<T, kDim>;
  constexpr int kHigh = Shape::kHigh, kTiles = Shape::kTiles, kColumns = kDim / 8;
  FS_SHARED(T, shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const AttentionTile me = tiles[blockIdx.x];
  const int kv = blockIdx.y, group = p.heads / p.kv_heads;
  const HeadColumns<T> own(p, kv * group, kv);
  T* const k_tile = shared + Shape::kRing;
  T* const v_tile = k_tile + Shape::kOwn;
  QueryRing<T, kDim, Shape> ring(p, pairs, me, kv * group, kv, shared,
                                 reinterpret_cast<float2*>(v_tile + Shape::kOwn));
  load_rows<Shape::kRows, kDim, Shape::kThreads>(k_tile, own.keys(p), own.width, p.head_dim,
                                                 me.first, me.end);
  load_rows<Shape::kRows, kDim, Shape::kThreads>(v_tile, own.values(p), own.width, p.head_dim,
                                                 me.first, me.end);
  copy_commit();
  FS_UNROLL
  for (int step = 0; step + 1 < Shape::kStages; ++step) {
    ring.load_next();
    copy_commit();
  }
  copy_wait<Shape::kStages - 1>();
  __syncthreads();
  const OwnRows<T, kDim, kHigh, false> keys(k_tile + warp * 16 * kHigh * Shape::kLd),
      values(v_tile + warp * 16 * kHigh * Shape::kLd);

  const int first = me.first + warp * 16 * kHigh;
  const float scale = p.scale * kLog2E;
  int query = me.first;
  float dk[kHigh][kColumns][4] = {}, dv[kHigh][kColumns][4] = {};
  for (int step = 0; step < ring.steps(); ++step) {
    copy_wait<Shape::kStages - 2>();
    __syncthreads();  // what is filled next has been read by all
    ring.load_next();
    copy_commit();
    const int here = query;
    query = here + Shape::kStep < ring.end() ? here + Shape::kStep : me.first;
    const Sight seen = sight(p, here, here + Shape::kStep - 1, first, first + 16 * kHigh - 1);
    if (seen == Sight::kNone) continue;
    const float2* const pair = ring.pairs(step) + (lane & 3) * 2;
    float w[kHigh][kTiles][4], ds[kHigh][kTiles][4];
    scores(w, keys, ring.queries(step));
    scores(ds, values, ring.gradients(step));
    FS_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      const float4 two = *reinterpret_cast<const float4*>(pair + n * 8);
      FS_UNROLL
      for (int m = 0; m < kHigh; ++m) {
        FS_UNROLL
        for (int e = 0; e < 4; ++e)
          w[m][n][e] = fast_exp2(fmaf(w[m][n][e], scale, -(e & 1 ? two.z : two.x)));
      }
    }
    if (seen == Sight::kSome)
      mask(w, 0, [&](int row, int column) { return sees(p, here + column, first + row); });
    weigh<T, kDim>(dv, w, ring.gradients(step));
    FS_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      const float4 two = *reinterpret_cast<const float4*>(pair + n * 8);
      FS_UNROLL
      for (int m = 0; m < kHigh; ++m) {
        FS_UNROLL
        for (int e = 0; e < 4; ++e)
          ds[m][n][e] = w[m][n][e] * (ds[m][n][e] - (e & 1 ? two.w : two.y));
      }
    }
    weigh<T, kDim>(dk, ds, ring.queries(step));
  }
  const float scales[2] = {p.scale, p.scale}, one[2] = {1, 1};
  T* const out = static_cast<T*>(p.dqkv);
  FS_UNROLL
  for (int m = 0; m < kHigh; ++m) {
    store_rows(dk[m], scales, out + own.k, own.width, p.head_dim, first + m * 16, me.end);
    store_rows(dv[m], one, out + own.v, own.width, p.head_dim, first + m * 16, me.end);
  }
}

}  // namespace fastserve::gpu
