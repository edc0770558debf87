// Attention over the paged KV cache.
#pragma once

#include "gpu/kernels/attention.cuh"
#include "gpu/kernels/rotary.cuh"
#include "gpu/kernels/wide.cuh"

namespace fastserve::gpu {

/// Where a row of the batch stands.
struct DecodeRow {
  int position;
  int table;  ///< of its sequence: first entry in `blocks`
};

struct DecodeAttentionArguments {
  int heads, kv_heads, head_dim, rows;
  float* qkv;
  const DecodeRow* row;
  const int32_t* blocks;  ///< block tables, one after another
  void *keys, *values;    ///< of the layer: [kv_head][slots][head_dim]
  size_t slots;           ///< of the pool
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

/// Norm and RoPE of each query (in place) and key; keys and values go to the cache.
///
/// Grid: rows * (heads + 2 kv_heads) / kRotaryWarps, rounded up. Block: 32 * kRotaryWarps, a warp a
/// head. Bits: a head's own.
template <class Kv>
__global__ void append_heads(DecodeAttentionArguments p) {
  const int all = p.heads + 2 * p.kv_heads, normed = p.heads + p.kv_heads;
  const int item = blockIdx.x * kRotaryWarps + threadIdx.x / 32, lane = threadIdx.x & 31;
  if (item >= p.rows * all) return;
  const int h = item % all, dim = p.head_dim;
  const DecodeRow me = p.row[item / all];
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
  if (h >= p.heads) {
    const int kv = (h - p.heads) % p.kv_heads;
    to = static_cast<Kv*>(h < normed ? p.keys : p.values) +
         (size_t(kv) * p.slots + slot_of(p, me, me.position)) * size_t(dim);
  }
  for (int i = lane; i < (dim + 1) / 2; i += 32) {
    const PairIndex e = pair_of(i, dim);
    Pair v{head[e.a], head[e.b]};
    if (weight) v = {v.a * inverse * weight[e.a], v.b * inverse * weight[e.b]};
    if (table && e.whole) v = turn(v, table[i], table[dim / 2 + i]);
    if (to) {
      to[e.a] = from_float<Kv>(v.a);
      if (e.whole) to[e.b] = from_float<Kv>(v.b);
    } else {
      head[e.a] = v.a;
      if (e.whole) head[e.b] = v.b;
    }
  }
}

constexpr int kChunk = 128;          ///< positions; chunks begin at multiples of it
constexpr int kAttendThreads = 128;  ///< one a position, then one a dimension and slice
constexpr int kAttendHeads = 4;      ///< query heads that share one reading of keys and values

/// Softmax of a run of positions: sum of 2^(score - peak), and values weighed by it.
struct Softmax {
  float peak, sum;
};
/// What `mine` is multiplied by, and `other` too, when they join. Exact operations only, so that
/// any kernel that joins in the same order has the same bits.
FS_DEVICE Softmax join(const Softmax& mine, const Softmax& other, float& keep, float& take) {
  const float peak = fmaxf(mine.peak, other.peak);
  keep = weight_of(mine.peak, peak);
  take = weight_of(other.peak, peak);
  return {peak, fmaf(other.sum, take, mine.sum * keep)};
}

/// Dot products of a key with some queries, kWide numbers of the key at a time. One chain a query.
template <int kWide, class Kv>
FS_DEVICE void scores_by(float (&s)[kAttendHeads], const float* q, int q_heads, const Kv* k,
                         int dim) {
  for (int d = 0; d < dim; d += kWide) {
    const Wide<kWide> key = load_wide<kWide>(k + d);
    FS_UNROLL
    for (int h = 0; h < kAttendHeads; ++h) {
      if (h >= q_heads) continue;
      FS_UNROLL
      for (int i = 0; i < kWide; ++i) s[h] = fmaf(q[h * dim + d + i], key.v[i], s[h]);
    }
  }
}
template <class Kv>
FS_DEVICE void scores_of(float (&s)[kAttendHeads], const float* q, int q_heads, const Kv* k,
                         int dim) {
  constexpr int kWide = 16 / int(sizeof(Kv));
  if (dim % kWide == 0)  // then every key of the pool is on 16 bytes
    scores_by<kWide>(s, q, q_heads, k, dim);
  else
    scores_by<1>(s, q, q_heads, k, dim);
}

template <class Kv>
constexpr size_t attend_shared(int head_dim) {
  return (size_t(kAttendHeads) * size_t(head_dim) + kAttendHeads * kChunk +
          size_t(kAttendHeads) * kAttendThreads + 2 * kAttendHeads + 16) *
         sizeof(float);
}

/// out = softmax(scale q K^T) V over a row's positions so far.
///
/// Grid:   (rows, kv_heads * groups of kAttendHeads query heads, chunks or 1). Block:
/// kAttendThreads. Shared: attend_shared(head_dim). Bits:   chunks of kChunk positions, joined in
/// order: the same whether one block walks all of a
///         row's chunks (grid.z = 1) or each has its own and join_chunks follows.
template <class Kv>
__global__ void __launch_bounds__(kAttendThreads) decode_attend(DecodeAttentionArguments p) {
  FS_SHARED(float, shared);
  const int dim = p.head_dim, group = p.heads / p.kv_heads;
  const int groups = (group + kAttendHeads - 1) / kAttendHeads;
  const int row = blockIdx.x, kv = blockIdx.y / groups;
  const int first_head = kv * group + blockIdx.y % groups * kAttendHeads;
  const int left = (kv + 1) * group - first_head,
            q_heads = left < kAttendHeads ? left : kAttendHeads;
  const DecodeRow me = p.row[row];
  const int first = p.window > 0 && me.position - p.window + 1 > 0 ? me.position - p.window + 1 : 0;
  const bool split = gridDim.z > 1;
  const int last_chunk = me.position / kChunk;
  const int begin = split ? int(blockIdx.z) : first / kChunk,
            end = split ? begin + 1 : last_chunk + 1;
  if (split && (begin < first / kChunk || begin > last_chunk)) return;

  float* const q = shared;
  float* const weights = q + kAttendHeads * dim;                // [head][kChunk]
  float* const slices = weights + kAttendHeads * kChunk;        // [head][kAttendThreads]
  float* const found = slices + kAttendHeads * kAttendThreads;  // [head][peak, sum]
  float* const room = found + 2 * kAttendHeads;
  const int width = (p.heads + 2 * p.kv_heads) * dim;
  for (int i = threadIdx.x; i < q_heads * dim; i += kAttendThreads)
    q[i] = p.qkv[at(row, width, first_head * dim) + size_t(i)];
  __syncthreads();
  const Kv* const keys = static_cast<const Kv*>(p.keys) + size_t(kv) * p.slots * size_t(dim);
  const Kv* const values = static_cast<const Kv*>(p.values) + size_t(kv) * p.slots * size_t(dim);
  // Threads by dimension, several slices of positions where head_dim is small.
  const int lanes = dim < kAttendThreads ? dim : kAttendThreads, count = kAttendThreads / lanes;
  const int slice = threadIdx.x / lanes;

  Softmax all[kAttendHeads];
  float acc[2][kAttendHeads] = {};  // dimensions d and d + kAttendThreads
  FS_UNROLL
  for (int h = 0; h < kAttendHeads; ++h) all[h] = {-INFINITY, 0};
  for (int chunk = begin; chunk < end; ++chunk) {
    const int position = chunk * kChunk + threadIdx.x;
    const bool seen = position >= first && position <= me.position;
    float s[kAttendHeads] = {};
    if (seen) scores_of(s, q, q_heads, keys + slot_of(p, me, position) * size_t(dim), dim);
    FS_UNROLL
    for (int h = 0; h < kAttendHeads; ++h) {
      if (h >= q_heads) continue;
      const float score = seen ? s[h] * p.scale * kLog2E : -INFINITY;
      const float peak = block_reduce<Max>(score, room);
      const float weight = weight_of(score, peak), sum = block_reduce<Add>(weight, room);
      weights[h * kChunk + threadIdx.x] = weight;
      if (threadIdx.x == 0) found[2 * h] = peak, found[2 * h + 1] = sum;
    }
    __syncthreads();
    const int from = chunk * kChunk > first ? 0 : first - chunk * kChunk;
    const int to =
        me.position + 1 - chunk * kChunk < kChunk ? me.position + 1 - chunk * kChunk : kChunk;
    float keep[kAttendHeads], take[kAttendHeads];
    FS_UNROLL
    for (int h = 0; h < kAttendHeads; ++h)
      all[h] = join(all[h], h < q_heads ? Softmax{found[2 * h], found[2 * h + 1]} : Softmax{0, 0},
                    keep[h], take[h]);
    FS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int d = threadIdx.x % lanes + half * kAttendThreads;
      float sums[kAttendHeads] = {};
      if (d < dim && slice < count && (half == 0 || dim > kAttendThreads))
        for (int i = from + slice; i < to; i += count) {
          const float v =
              as_float(values[slot_of(p, me, chunk * kChunk + i) * size_t(dim) + size_t(d)]);
          FS_UNROLL
          for (int h = 0; h < kAttendHeads; ++h)
            if (h < q_heads) sums[h] = fmaf(weights[h * kChunk + i], v, sums[h]);
        }
      if (half == 1 && dim <= kAttendThreads) continue;
      FS_UNROLL
      for (int h = 0; h < kAttendHeads; ++h) slices[h * kAttendThreads + threadIdx.x] = sums[h];
      __syncthreads();
      if (slice == 0) FS_UNROLL
      for (int h = 0; h < kAttendHeads; ++h) {
        float sum = 0;
        for (int k = 0; k < count; ++k) sum += slices[h * kAttendThreads + k * lanes + threadIdx.x];
        acc[half][h] = fmaf(sum, take[h], acc[half][h] * keep[h]);
      }
      __syncthreads();
    }
  }
  if (slice != 0) return;
  FS_UNROLL
  for (int h = 0; h < kAttendHeads; ++h) {
    if (h >= q_heads) continue;
    const int head = first_head + h;
    float* const part =
        split ? p.partials +
                    (at(row, p.heads, head) * size_t(p.chunks) + size_t(begin)) * size_t(dim + 2)
              : nullptr;
    if (part && threadIdx.x == 0) part[dim] = all[h].peak, part[dim + 1] = all[h].sum;
    FS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int d = threadIdx.x + half * kAttendThreads;
      if (d >= dim) continue;
      if (part)
        part[d] = acc[half][h];
      else
        p.out[at(row, p.heads * dim, head * dim + d)] = acc[half][h] / all[h].sum;
    }
  }
}

/// Joins the chunks that decode_attend left, in order. Grid: (rows, heads). Block: any.
static __global__ void join_chunks(DecodeAttentionArguments p) {
  const int row = blockIdx.x, head = blockIdx.y, dim = p.head_dim;
  const int position = p.row[row].position;
  const int first = p.window > 0 && position - p.window + 1 > 0 ? position - p.window + 1 : 0;
  const float* const parts =
      p.partials + at(row, p.heads, head) * size_t(p.chunks) * size_t(dim + 2);
  for (int d = threadIdx.x; d < dim; d += blockDim.x) {
    Softmax all{-INFINITY, 0};
    float acc = 0;
    for (int chunk = first / kChunk; chunk <= position / kChunk; ++chunk) {
      const float* const part = parts + size_t(chunk) * size_t(dim + 2);
      float keep, take;
      all = join(all, {part[dim], part[dim + 1]}, keep, take);
      acc = fmaf(part[d], take, acc * keep);
    }
    p.out[at(row, p.heads * dim, head * dim + d)] = acc / all.sum;
  }
}

}  // namespace fastserve::gpu
