// Keys and values on their way into the paged cache.
#pragma once

#include <bit>

#include "gpu/kernels/rotary.cuh"
#include "gpu/kernels/wide.cuh"
#include "model/decode_ops.h"

namespace fastserve::gpu {

using DecodeRow = RowPlace;

/// Quotients by a number that is known when a kernel is started: a product instead of a division.
/// Source: Granlund and Montgomery, Division by invariant integers using multiplication, 1994.
struct Divisor {
  int by;
  uint32_t factor;  ///< 2^(31 + shift) / by, rounded up
  int shift;        ///< log 2 of `by`, rounded up

  /// Of a positive number.
  static Divisor of(int number) {
    const int shift = std::bit_width(static_cast<unsigned>(number - 1));
    const uint64_t power = uint64_t{1} << (31 + shift), n = static_cast<uint64_t>(number);
    return {number, static_cast<uint32_t>((power + n - 1) / n), shift};
  }
  /// n / by. Requires n >= 0.
  FS_DEVICE int quotient(int n) const {
    return int(high_product(uint32_t(n) * 2, factor) >> shift);
  }
};

struct DecodeAttentionArguments {
  int heads, kv_heads, head_dim, rows;
  float* qkv;
  const DecodeRow* row;
  const int32_t* blocks;             ///< block tables, one after another
  void *keys, *values;               ///< of the layer: [kv_head][slots][head_dim]
  float *key_scales, *value_scales;  ///< of int8 ones, [kv_head][slots]; or null
  size_t slots;                      ///< of the pool
  Divisor block_tokens;
  const float *rope_table, *q_norm, *k_norm;
  float epsilon;
  int window;
  float scale;
  float* out;
  float* partials;  ///< split: [rows][heads][chunks][head_dim + 2]
  int chunks;       ///< most that a row has
  int units;        ///< of tile_attend where it is split: that a block takes
  bool appends;     ///< no two rows are of one sequence: decode_attend does append_heads' work
};

FS_DEVICE size_t slot_of(const DecodeAttentionArguments& p, const DecodeRow& row, int position) {
  const int n = p.block_tokens.quotient(position), block = p.blocks[row.table + n];
  return size_t(block) * size_t(p.block_tokens.by) + size_t(position - n * p.block_tokens.by);
}

/// Codes of a head whose lane-th pairs of numbers this lane wrote: put(i, code). Their scale.
template <class Put>
FS_DEVICE float quantise_head(const float* head, int dim, const Put& put) {
  const int lane = threadIdx.x & 31;
  uint32_t top = 0;  // of magnitudes, as integers: a NaN is larger than everything
  FS_NO_UNROLL
  for (int i = lane; i < (dim + 1) / 2; i += 32) {
    const PairIndex e = pair_of(i, dim);
    top = Max::of(top, float_bits(head[e.a]) & 0x7fffffffu);
    if (e.whole) top = Max::of(top, float_bits(head[e.b]) & 0x7fffffffu);
  }
  const float peak = bits_float(warp_reduce<Max>(top));
  const float by = peak > 1e-30f ? 127.0f / peak : 0.0f;
  FS_NO_UNROLL
  for (int i = lane; i < (dim + 1) / 2; i += 32) {
    const PairIndex e = pair_of(i, dim);
    put(e.a, int8_t(__float2int_rn(head[e.a] * by)));
    if (e.whole) put(e.b, int8_t(__float2int_rn(head[e.b] * by)));
  }
  return peak / 127.0f;
}

/// A key-value head's part of the cache.
template <class Kv>
struct CacheHead {
  const Kv *keys, *values;
  const float *key_scales, *value_scales;  ///< int8; else null
};
template <class Kv>
FS_DEVICE CacheHead<Kv> cache_head(const DecodeAttentionArguments& p, int kv) {
  const size_t slots = size_t(kv) * p.slots, pool = slots * size_t(p.head_dim);
  return {static_cast<const Kv*>(p.keys) + pool, static_cast<const Kv*>(p.values) + pool,
          p.key_scales ? p.key_scales + slots : nullptr,
          p.value_scales ? p.value_scales + slots : nullptr};
}

/// The output of a row that stands nowhere, for `heads` query heads. By the block's first
/// `threads`.
FS_DEVICE void leave_out(const DecodeAttentionArguments& p, int row, int head, int heads,
                         int threads) {
  for (int i = threadIdx.x; i < heads * p.head_dim; i += threads)
    p.out[at(row, p.heads * p.head_dim, head * p.head_dim + i)] = 0;
}

/// A row's part of the table that turns its queries and keys, or null.
FS_DEVICE const float* rope_of(const DecodeAttentionArguments& p, const DecodeRow& me) {
  return p.rope_table ? p.rope_table + at(me.position, p.head_dim) : nullptr;
}

/// Norm and RoPE of head h, of a row's queries, keys and values: put(i, number), lane by lane its
/// pairs. `rope`: the row's, as rope_of() has it. By a warp; put() may overwrite `head`.
template <class Put>
FS_DEVICE void turn_head(const DecodeAttentionArguments& p, const float* rope, int h,
                         const float* head, const Put& put) {
  const int lane = threadIdx.x & 31, dim = p.head_dim, normed = p.heads + p.kv_heads;
  const float* const weight = h < p.heads ? p.q_norm : h < normed ? p.k_norm : nullptr;
  float inverse = 1;
  if (weight) {
    float square = 0;
    FS_NO_UNROLL
    for (int d = lane; d < dim; d += 32) square = fmaf(head[d], head[d], square);
    inverse = 1.0f / sqrtf(warp_reduce<Add>(square) / float(dim) + p.epsilon);
  }
  const float* const table = h < normed ? rope : nullptr;
  FS_NO_UNROLL
  for (int i = lane; i < (dim + 1) / 2; i += 32) {
    const PairIndex e = pair_of(i, dim);
    Pair v{head[e.a], head[e.b]};
    if (weight) v = {v.a * inverse * weight[e.a], v.b * inverse * weight[e.b]};
    if (table && e.whole) v = turn(v, table[i], table[dim / 2 + i]);
    put(e.a, v.a);
    if (e.whole) put(e.b, v.b);
  }
}

/// A key or value on its way into the cache: put(i, Kv). The scale of int8 ones. By a warp; `room`:
/// int8: dim floats, which may be the head itself.
template <class Kv, class Put>
FS_DEVICE float turn_into(const DecodeAttentionArguments& p, const float* rope, int h,
                          const float* head, [[maybe_unused]] float* room, const Put& put) {
  if constexpr (sizeof(Kv) == 1) {
    turn_head(p, rope, h, head, [&](int i, float v) { room[i] = v; });
    return quantise_head(room, p.head_dim, put);
  } else {
    turn_head(p, rope, h, head, [&](int i, float v) { put(i, from_float<Kv>(v)); });
    return 1;
  }
}

/// Norm and RoPE of each query (in place) and key; keys and values go to the cache.
///
/// Grid: rows * (heads + 2 kv_heads) / kRotaryWarps, rounded up. Block: 32 * kRotaryWarps, a warp a
/// head. Bits: a head's own.
template <class Kv>
__global__ void append_heads(DecodeAttentionArguments p) {
  let_next_begin();
  wait_for_previous();
  const int all = p.heads + 2 * p.kv_heads, normed = p.heads + p.kv_heads;
  const int item = blockIdx.x * kRotaryWarps + threadIdx.x / 32, lane = threadIdx.x & 31;
  if (item >= p.rows * all) return;
  const int h = item % all, dim = p.head_dim;
  const DecodeRow me = p.row[item / all];
  if (me.position < 0) return;
  float* const head = p.qkv + at(item, dim);
  const float* const rope = rope_of(p, me);
  if (h < p.heads) return turn_head(p, rope, h, head, [&](int i, float v) { head[i] = v; });
  const int kv = (h - p.heads) % p.kv_heads;
  const size_t slot = size_t(kv) * p.slots + slot_of(p, me, me.position);
  Kv* const to = static_cast<Kv*>(h < normed ? p.keys : p.values) + slot * size_t(dim);
  const float scale = turn_into<Kv>(p, rope, h, head, head, [&](int i, Kv v) { to[i] = v; });
  if constexpr (sizeof(Kv) == 1)
    if (lane == 0) (h < normed ? p.key_scales : p.value_scales)[slot] = scale;
}

}  // namespace fastserve::gpu
