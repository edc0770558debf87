// Attention over the paged KV cache.
#pragma once

#include "gpu/kernels/attention.cuh"
#include "gpu/kernels/rotary.cuh"
#include "gpu/kernels/wide.cuh"
#include "model/decode_ops.h"

namespace fastserve::gpu {

using DecodeRow = RowPlace;

struct DecodeAttentionArguments {
  int heads, kv_heads, head_dim, rows;
  float* qkv;
  const DecodeRow* row;
  const int32_t* blocks;             ///< block tables, one after another
  void *keys, *values;               ///< of the layer: [kv_head][slots][head_dim]
  float *key_scales, *value_scales;  ///< of int8 ones, [kv_head][slots]; or null
  size_t slots;                      ///< of the pool
  int block_tokens;
  const float *rope_table, *q_norm, *k_norm;
  float epsilon;
  int window;
  float scale;
  float* out;
  float* partials;  ///< split: [rows][heads][chunks][head_dim + 2]
  int chunks;       ///< most that a row has
};

FS_DEVICE size_t slot_of(const DecodeAttentionArguments& p, const DecodeRow& row, int position) {
  const int block = p.blocks[row.table + position / p.block_tokens];
  return size_t(block) * size_t(p.block_tokens) + size_t(position % p.block_tokens);
}

/// Codes of a head whose lane-th pairs of numbers this lane wrote, and their scale.
FS_DEVICE void quantise_head(const float* head, int dim, int lane, int8_t* codes, float* scale) {
  uint32_t top = 0;  // of magnitudes, as integers: a NaN is larger than everything
  for (int i = lane; i < (dim + 1) / 2; i += 32) {
    const PairIndex e = pair_of(i, dim);
    top = Max::of(top, float_bits(head[e.a]) & 0x7fffffffu);
    if (e.whole) top = Max::of(top, float_bits(head[e.b]) & 0x7fffffffu);
  }
  const float peak = bits_float(warp_reduce<Max>(top));
  const float by = peak > 1e-30f ? 127.0f / peak : 0.0f;
  for (int i = lane; i < (dim + 1) / 2; i += 32) {
    const PairIndex e = pair_of(i, dim);
    codes[e.a] = int8_t(__float2int_rn(head[e.a] * by));
    if (e.whole) codes[e.b] = int8_t(__float2int_rn(head[e.b] * by));
  }
  if (lane == 0) *scale = peak / 127.0f;
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
  const float* const weight = h < p.heads ? p.q_norm : h < normed ? p.k_norm : nullptr;
  float inverse = 1;
  if (weight) {
    float square = 0;
    for (int d = lane; d < dim; d += 32) square += head[d] * head[d];
    inverse = 1.0f / sqrtf(warp_reduce<Add>(square) / float(dim) + p.epsilon);
  }
  const float* const table =
      p.rope_table && h < normed ? p.rope_table + at(me.position, dim) : nullptr;
  Kv* to = nullptr;
  float* scale = nullptr;
  if (h >= p.heads) {
    const int kv = (h - p.heads) % p.kv_heads;
    const size_t slot = size_t(kv) * p.slots + slot_of(p, me, me.position);
    to = static_cast<Kv*>(h < normed ? p.keys : p.values) + slot * size_t(dim);
    if constexpr (sizeof(Kv) == 1) scale = (h < normed ? p.key_scales : p.value_scales) + slot;
  }
  for (int i = lane; i < (dim + 1) / 2; i += 32) {
    const PairIndex e = pair_of(i, dim);
    Pair v{head[e.a], head[e.b]};
    if (weight) v = {v.a * inverse * weight[e.a], v.b * inverse * weight[e.b]};
    if (table && e.whole) v = turn(v, table[i], table[dim / 2 + i]);
    if (to && sizeof(Kv) > 1) {
      if constexpr (sizeof(Kv) > 1) {
        to[e.a] = from_float<Kv>(v.a);
        if (e.whole) to[e.b] = from_float<Kv>(v.b);
      }
    } else {
      head[e.a] = v.a;
      if (e.whole) head[e.b] = v.b;
    }
  }
  if constexpr (sizeof(Kv) == 1)
    if (to) quantise_head(head, dim, lane, to, scale);
}

constexpr int kChunk = 128;          ///< positions; chunks begin at multiples of it
constexpr int kAttendThreads = 128;  ///< one a position, then one a run of dimensions and a slice
constexpr int kAttendHeads = 4;      ///< query heads that share one reading of keys and values

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

/// A block's shared memory.
template <int kWide>
struct AttendShared {
  float *q, *acc;        ///< [kAttendHeads][head_dim]
  float* weights;        ///< [kAttendHeads][kChunk]
  float* slices;         ///< [kAttendHeads][kAttendThreads * kWide]
  Softmax *chunk, *all;  ///< [kAttendHeads]
  float *keep, *take;    ///< [kAttendHeads]
  float* room;           ///< of block_reduce

  static constexpr size_t floats(int dim) {
    return 2 * kAttendHeads * size_t(dim) + kAttendHeads * (kChunk + kAttendThreads * kWide + 6) +
           4;
  }
  FS_DEVICE AttendShared(float* from, int dim) {
    q = from;
    acc = q + kAttendHeads * dim;
    weights = acc + kAttendHeads * dim;
    slices = weights + kAttendHeads * kChunk;
    chunk = reinterpret_cast<Softmax*>(slices + kAttendHeads * kAttendThreads * kWide);
    all = chunk + kAttendHeads;
    keep = reinterpret_cast<float*>(all + kAttendHeads);
    take = keep + kAttendHeads;
    room = take + kAttendHeads;
  }
};

/// What a block works on: some query heads of one row over one key-value head.
template <class Kv>
struct AttendWork {
  DecodeRow me;
  int heads, dim, first;  ///< query heads; first position that the row sees
  const Kv *keys, *values;
  const float *key_scales, *value_scales;  ///< int8
};

/// Weights of a chunk's positions for each query head, and their sums. With int8 values a weight
/// takes its value's scale along, which the sum does not.
template <class Kv, int kWide>
FS_DEVICE void weigh_chunk(const DecodeAttentionArguments& p, const AttendWork<Kv>& work, int chunk,
                           const AttendShared<kWide>& shared) {
  const int position = chunk * kChunk + threadIdx.x;
  const bool seen = position >= work.first && position <= work.me.position;
  float s[kAttendHeads] = {}, value_scale = 1;
  if (seen) {
    const size_t slot = slot_of(p, work.me, position);
    const Kv* const key = work.keys + slot * size_t(work.dim);
    for (int d = 0; d < work.dim; d += kWide) {
      const Wide<kWide> k = load_wide<kWide>(key + d);
      FS_UNROLL
      for (int h = 0; h < kAttendHeads; ++h) {
        if (h >= work.heads) continue;
        FS_UNROLL
        for (int i = 0; i < kWide; ++i) s[h] = fmaf(shared.q[h * work.dim + d + i], k.v[i], s[h]);
      }
    }
    if constexpr (sizeof(Kv) == 1) {
      const float key_scale = work.key_scales[slot];
      value_scale = work.value_scales[slot];
      FS_UNROLL
      for (int h = 0; h < kAttendHeads; ++h) s[h] *= key_scale;
    }
  }
  FS_UNROLL
  for (int h = 0; h < kAttendHeads; ++h) {
    if (h >= work.heads) continue;
    const float score = seen ? s[h] * p.scale * kLog2E : -INFINITY;
    const float peak = block_reduce<Max>(score, shared.room);
    const float weight = weight_of(score, peak), sum = block_reduce<Add>(weight, shared.room);
    shared.weights[h * kChunk + threadIdx.x] = sizeof(Kv) == 1 ? weight * value_scale : weight;
    if (threadIdx.x == 0) shared.chunk[h] = {peak, sum};
  }
  __syncthreads();
}

/// acc = acc keep + (the chunk's values by its weights) take.
template <class Kv, int kWide>
FS_DEVICE void add_values(const DecodeAttentionArguments& p, const AttendWork<Kv>& work, int chunk,
                          const AttendShared<kWide>& shared) {
  if (int(threadIdx.x) < work.heads) {
    const int h = threadIdx.x;
    shared.all[h] = join(shared.all[h], shared.chunk[h], shared.keep[h], shared.take[h]);
  }
  const int base = chunk * kChunk, from = base > work.first ? 0 : work.first - base;
  const int left = work.me.position + 1 - base, to = left < kChunk ? left : kChunk;
  for (int run = 0; run < work.dim / kWide; run += kAttendThreads) {
    const int rest = work.dim / kWide - run, lanes = rest < kAttendThreads ? rest : kAttendThreads;
    const int count = kAttendThreads / lanes, slice = threadIdx.x / lanes;
    const int dimension = (run + threadIdx.x % lanes) * kWide;
    Wide<kWide> sums[kAttendHeads] = {};
    if (slice < count)
      for (int i = from + slice; i < to; i += count) {
        const size_t slot = slot_of(p, work.me, base + i);
        const Wide<kWide> v = load_wide<kWide>(work.values + slot * size_t(work.dim) + dimension);
        FS_UNROLL
        for (int h = 0; h < kAttendHeads; ++h) {
          if (h >= work.heads) continue;
          const float weight = shared.weights[h * kChunk + i];
          FS_UNROLL
          for (int e = 0; e < kWide; ++e) sums[h].v[e] = fmaf(weight, v.v[e], sums[h].v[e]);
        }
      }
    constexpr int kSlices = kAttendThreads * kWide;
    FS_UNROLL
    for (int h = 0; h < kAttendHeads; ++h)
      store_wide(shared.slices + h * kSlices + threadIdx.x * kWide, sums[h]);
    __syncthreads();
    const int columns = lanes * kWide;
    for (int i = threadIdx.x; i < work.heads * columns; i += kAttendThreads) {
      const int h = i / columns, c = i % columns;
      float sum = 0;
      for (int k = 0; k < count; ++k) sum += shared.slices[h * kSlices + k * columns + c];
      float& acc = shared.acc[h * work.dim + run * kWide + c];
      acc = joined(acc, shared.keep[h], sum, shared.take[h]);
    }
    __syncthreads();  // slices, weights and what was found are overwritten next
  }
}

/// out = softmax(scale q K^T) V over a row's positions so far.
///
/// Grid:   (rows, kv_heads * groups of kAttendHeads query heads, chunks or 1). Block:
/// kAttendThreads. Shared: AttendShared<kWide>::floats(head_dim) floats. Needs:  head_dim a
/// multiple of kWide. Bits:   chunks of kChunk positions, joined in order: the same whether one
/// block walks all of a
///         row's chunks (grid.z = 1) or each has its own and join_chunks follows. In a chunk,
///         slices of every so many positions, as head_dim has it, then the slices in order.
template <class Kv, int kWide>
__global__ void __launch_bounds__(kAttendThreads) decode_attend(DecodeAttentionArguments p) {
  FS_SHARED(float, memory);
  let_next_begin();
  wait_for_previous();
  const int dim = p.head_dim, group = p.heads / p.kv_heads;
  const int groups = (group + kAttendHeads - 1) / kAttendHeads;
  const int row = blockIdx.x, kv = blockIdx.y / groups;
  const int head = kv * group + blockIdx.y % groups * kAttendHeads, left = (kv + 1) * group - head;
  const DecodeRow me = p.row[row];
  if (me.position < 0) {  // stands nowhere
    const int count = (left < kAttendHeads ? left : kAttendHeads) * dim;
    for (int i = threadIdx.x; i < count && blockIdx.z == 0; i += kAttendThreads)
      p.out[at(row, p.heads * dim, head * dim + i)] = 0;
    return;
  }
  const int first = p.window > 0 && me.position >= p.window ? me.position - p.window + 1 : 0;
  const bool split = gridDim.z > 1;
  const int begin = split ? int(blockIdx.z) : first / kChunk;
  const int end = split ? begin + 1 : me.position / kChunk + 1;
  if (begin < first / kChunk || begin > me.position / kChunk) return;
  const size_t slots = size_t(kv) * p.slots, pool = slots * size_t(dim);
  const AttendWork<Kv> work{me,
                            left < kAttendHeads ? left : kAttendHeads,
                            dim,
                            first,
                            static_cast<const Kv*>(p.keys) + pool,
                            static_cast<const Kv*>(p.values) + pool,
                            p.key_scales ? p.key_scales + slots : nullptr,
                            p.value_scales ? p.value_scales + slots : nullptr};
  const AttendShared<kWide> shared(memory, dim);
  const float* const q = p.qkv + at(row, (p.heads + 2 * p.kv_heads) * dim, head * dim);
  for (int i = threadIdx.x; i < work.heads * dim; i += kAttendThreads) shared.q[i] = q[i];
  for (int i = threadIdx.x; i < kAttendHeads * dim; i += kAttendThreads) shared.acc[i] = 0;
  if (threadIdx.x < kAttendHeads) shared.all[threadIdx.x] = {-INFINITY, 0};
  __syncthreads();
  for (int chunk = begin; chunk < end; ++chunk) {
    weigh_chunk(p, work, chunk, shared);
    add_values(p, work, chunk, shared);
  }
  for (int i = threadIdx.x; i < work.heads * dim; i += kAttendThreads) {
    const int h = i / dim, d = i % dim;
    if (!split) {
      p.out[at(row, p.heads * dim, (head + h) * dim + d)] = shared.acc[i] / shared.all[h].sum;
      continue;
    }
    float* const part =
        p.partials +
        (at(row, p.heads, head + h) * size_t(p.chunks) + size_t(begin)) * size_t(dim + 2);
    part[d] = shared.acc[i];
    if (d == 0) part[dim] = shared.all[h].peak;
    if (d == 0) part[dim + 1] = shared.all[h].sum;
  }
}

/// Joins the chunks that decode_attend left, in order. Grid: (rows, heads). Block: any.
static __global__ void join_chunks(DecodeAttentionArguments p) {
  let_next_begin();
  wait_for_previous();
  const int row = blockIdx.x, head = blockIdx.y, dim = p.head_dim;
  const int position = p.row[row].position;
  if (position < 0) return;
  const int first = p.window > 0 && position >= p.window ? position - p.window + 1 : 0;
  const float* const parts =
      p.partials + at(row, p.heads, head) * size_t(p.chunks) * size_t(dim + 2);
  for (int d = threadIdx.x; d < dim; d += blockDim.x) {
    Softmax all{-INFINITY, 0};
    float acc = 0;
    for (int chunk = first / kChunk; chunk <= position / kChunk; ++chunk) {
      const float* const part = parts + size_t(chunk) * size_t(dim + 2);
      float keep, take;
      all = join(all, {part[dim], part[dim + 1]}, keep, take);
      acc = joined(acc, keep, part[d], take);
    }
    p.out[at(row, p.heads * dim, head * dim + d)] = acc / all.sum;
  }
}

}  // namespace fastserve::gpu
