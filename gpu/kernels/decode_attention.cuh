// Attention over the paged KV cache.
#pragma once

#include "gpu/kernels/attention.cuh"
#include "gpu/kernels/decode_append.cuh"
#include "gpu/simt/tensor_core.h"

namespace fastserve::gpu {

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

/// How a block reads keys and values. kStaged: asynchronous copies bring a chunk's rows to shared
/// memory, 16 bytes a lane, while the chunk before is worked on. Otherwise, where a row is not on
/// 16 bytes or there is no room, each thread reads what it needs. The bits are the same.
template <class Kv, int kWide, int kHeads, bool kStaged>
struct AttendBlock {
  float *q, *acc;                ///< [kHeads][head_dim]
  float* weights;                ///< [kHeads][kChunk]: scores first
  float* value_scales;           ///< int8: [kChunk]
  float* slices;                 ///< [kHeads][kAttendThreads * kWide]; staged: where values were
  Softmax* all;                  ///< [kHeads]
  float *keep, *take;            ///< [kHeads]
  uint32_t* slots;               ///< [2][kChunk], of even and of odd chunks
  unsigned char *keys, *values;  ///< staged: [kChunk][row_bytes]

  static constexpr int kSlices = kAttendThreads * kWide;
  static __host__ FS_DEVICE int pieces(int dim) { return dim * int(sizeof(Kv)) / 16; }
  /// Of a staged row. Eight threads' rows lie in other banks: either their pieces of 16 bytes
  /// change places, or a row is an odd number of those.
  static __host__ FS_DEVICE int row_bytes(int dim) {
    return (pieces(dim) % 8 == 0 ? pieces(dim) : pieces(dim) | 1) * 16;
  }
  static FS_DEVICE int place(int dim, int row, int piece) {
    return (piece ^ (pieces(dim) % 8 == 0 ? row & 7 : 0)) * 16;
  }
  /// Where number d of a staged row lies.
  static FS_DEVICE const Kv* staged(const unsigned char* rows, int dim, int row, int d) {
    const int byte = d * int(sizeof(Kv));
    return reinterpret_cast<const Kv*>(rows + row * row_bytes(dim) + place(dim, row, byte / 16) +
                                       byte % 16);
  }
  static __host__ FS_DEVICE size_t rows_bytes(int dim) {
    return kStaged ? size_t(kChunk) * size_t(row_bytes(dim)) : 0;
  }
  static __host__ FS_DEVICE size_t values_bytes(int dim) {
    constexpr size_t kLeast = size_t(kHeads) * kSlices * sizeof(float);
    return rows_bytes(dim) > kLeast ? rows_bytes(dim) : kLeast;
  }
  static size_t shared(int dim) {
    return rows_bytes(dim) + values_bytes(dim) +
           (kHeads * (2 * size_t(dim) + kChunk + 4) + 3 * kChunk) * sizeof(float);
  }
  FS_DEVICE AttendBlock(unsigned char* from, int dim) {
    keys = from;
    values = keys + rows_bytes(dim);
    slices = reinterpret_cast<float*>(values);
    q = reinterpret_cast<float*>(values + values_bytes(dim));
    acc = q + kHeads * dim;
    weights = acc + kHeads * dim;
    value_scales = weights + kHeads * kChunk;
    slots = reinterpret_cast<uint32_t*>(value_scales + kChunk);
    all = reinterpret_cast<Softmax*>(slots + 2 * kChunk);
    keep = reinterpret_cast<float*>(all + kHeads);
    take = keep + kHeads;
  }
};

/// What a block works on: some query heads of one row over one key-value head.
template <class Kv>
struct AttendWork {
  DecodeRow me;
  int heads, dim, first;  ///< query heads; first position that the row sees
  const Kv *keys, *values;
  const float *key_scales, *value_scales;  ///< int8
  /// Rows of a chunk that are seen: from .. to - 1.
  FS_DEVICE int from(int chunk) const {
    return chunk * kChunk > first ? 0 : first - chunk * kChunk;
  }
  FS_DEVICE int to(int chunk) const {
    const int left = me.position + 1 - chunk * kChunk;
    return left < kChunk ? left : kChunk;
  }
};

/// The slot of this thread's position in a chunk; 0 where it is not seen.
template <class Kv>
FS_DEVICE uint32_t find_slot(const DecodeAttentionArguments& p, const AttendWork<Kv>& work,
                             int chunk) {
  const int i = threadIdx.x;
  if (i < work.from(chunk) || i >= work.to(chunk)) return 0;
  return uint32_t(slot_of(p, work.me, chunk * kChunk + i));
}

/// Starts the copies of a chunk's keys, or values.
template <class Block, class Kv>
FS_DEVICE void fetch_rows(const AttendWork<Kv>& work, int chunk, const Kv* pool,
                          const uint32_t* slots, unsigned char* to) {
  const int pieces = Block::pieces(work.dim), bytes = Block::row_bytes(work.dim);
  const int rows = kAttendThreads / pieces, rest = kAttendThreads % pieces;
  const int begin = work.from(chunk), end = work.to(chunk);
  int row = begin + int(threadIdx.x) / pieces, piece = int(threadIdx.x) % pieces;
  while (row < end) {
    const auto* const from =
        reinterpret_cast<const unsigned char*>(pool + size_t(slots[row]) * size_t(work.dim));
    copy_async(to + row * bytes + Block::place(work.dim, row, piece), from + piece * 16, 16);
    row += rows;
    piece += rest;
    if (piece >= pieces) {
      piece -= pieces;
      ++row;
    }
  }
}

/// Scores of a chunk's positions for each query head: a thread a position, dimensions in order.
template <class Kv, int kWide, int kHeads, bool kStaged>
FS_DEVICE void score_chunk(const DecodeAttentionArguments& p, const AttendWork<Kv>& work, int chunk,
                           float key_scale, float value_scale,
                           const AttendBlock<Kv, kWide, kHeads, kStaged>& block) {
  const int i = threadIdx.x;
  const bool seen = i >= work.from(chunk) && i < work.to(chunk);
  float s[kHeads] = {};
  if (seen) {
    const Kv* const key =
        work.keys + size_t(block.slots[(chunk & 1) * kChunk + i]) * size_t(work.dim);
    for (int d = 0; d < work.dim; d += kWide) {
      const Wide<kWide> k =
          load_wide<kWide>(kStaged ? block.staged(block.keys, work.dim, i, d) : key + d);
      FS_UNROLL
      for (int h = 0; h < kHeads; ++h) {
        const Wide<kWide> q = load_wide<kWide>(block.q + h * work.dim + d);
        FS_UNROLL
        for (int e = 0; e < kWide; ++e) s[h] = fmaf(q.v[e], k.v[e], s[h]);
      }
    }
  }
  FS_UNROLL
  for (int h = 0; h < kHeads; ++h) {
    if constexpr (sizeof(Kv) == 1) s[h] *= key_scale;
    block.weights[h * kChunk + i] = seen ? s[h] * p.scale * kLog2E : -INFINITY;
  }
  if constexpr (sizeof(Kv) == 1) block.value_scales[i] = value_scale;
}

/// Scores become weights, a warp a query head, and the chunk's softmax is joined to the row's. With
/// int8 values a weight takes its value's scale along, which the sum does not.
template <class Kv, int kWide, int kHeads, bool kStaged>
FS_DEVICE void weigh_chunk(const AttendWork<Kv>& work,
                           const AttendBlock<Kv, kWide, kHeads, kStaged>& block) {
  constexpr int kEach = kChunk / 32;
  const int lane = threadIdx.x & 31;
  for (int h = threadIdx.x / 32; h < work.heads; h += kAttendThreads / 32) {
    float* const weights = block.weights + h * kChunk;
    float scores[kEach], peak = -INFINITY, sum = 0;
    FS_UNROLL
    for (int k = 0; k < kEach; ++k) {
      scores[k] = weights[lane + k * 32];
      peak = fmaxf(peak, scores[k]);
    }
    peak = warp_reduce<Max>(peak);
    FS_UNROLL
    for (int k = 0; k < kEach; ++k) {
      const float weight = weight_of(scores[k], peak);
      sum += weight;
      weights[lane + k * 32] =
          sizeof(Kv) == 1 ? weight * block.value_scales[lane + k * 32] : weight;
    }
    sum = warp_reduce<Add>(sum);
    if (lane == 0) block.all[h] = join(block.all[h], {peak, sum}, block.keep[h], block.take[h]);
  }
}

/// acc = acc keep + (the chunk's values by its weights) take.
template <class Kv, int kWide, int kHeads, bool kStaged>
FS_DEVICE void add_values(const AttendWork<Kv>& work, int chunk,
                          const AttendBlock<Kv, kWide, kHeads, kStaged>& block) {
  const uint32_t* const slots = block.slots + (chunk & 1) * kChunk;
  const int from = work.from(chunk), to = work.to(chunk);
  for (int run = 0; run < work.dim / kWide; run += kAttendThreads) {
    const int rest = work.dim / kWide - run, lanes = rest < kAttendThreads ? rest : kAttendThreads;
    const int count = kAttendThreads / lanes, slice = threadIdx.x / lanes;
    const int dimension = (run + threadIdx.x % lanes) * kWide;
    Wide<kWide> sums[kHeads] = {};
    if (slice < count)
      for (int i = from + slice; i < to; i += count) {
        const Wide<kWide> v = load_wide<kWide>(
            kStaged ? block.staged(block.values, work.dim, i, dimension)
                    : work.values + size_t(slots[i]) * size_t(work.dim) + size_t(dimension));
        FS_UNROLL
        for (int h = 0; h < kHeads; ++h) {
          const float weight = block.weights[h * kChunk + i];
          FS_UNROLL
          for (int e = 0; e < kWide; ++e) sums[h].v[e] = fmaf(weight, v.v[e], sums[h].v[e]);
        }
      }
    constexpr int kSlices = kAttendThreads * kWide;
    if constexpr (kStaged) __syncthreads();  // the values have been read: one run is all of them
    FS_UNROLL
    for (int h = 0; h < kHeads; ++h)
      store_wide(block.slices + h * kSlices + threadIdx.x * kWide, sums[h]);
    __syncthreads();
    const int columns = lanes * kWide;
    for (int i = threadIdx.x; i < work.heads * columns; i += kAttendThreads) {
      const int h = i / columns, c = i % columns;
      float sum = 0;
      for (int k = 0; k < count; ++k) sum += block.slices[h * kSlices + k * columns + c];
      float& acc = block.acc[h * work.dim + run * kWide + c];
      acc = joined(acc, block.keep[h], sum, block.take[h]);
    }
    __syncthreads();  // slices, weights and what was found are overwritten next
  }
}

/// A row's chunks begin .. end - 1, one after another, into block.acc and block.all.
template <class Kv, int kWide, int kHeads, bool kStaged>
FS_DEVICE void attend_chunks(const DecodeAttentionArguments& p, const AttendWork<Kv>& work,
                             int begin, int end,
                             const AttendBlock<Kv, kWide, kHeads, kStaged>& block) {
  using Block = AttendBlock<Kv, kWide, kHeads, kStaged>;
  constexpr bool kScaled = sizeof(Kv) == 1;
  const auto slots = [&](int chunk) { return block.slots + (chunk & 1) * kChunk; };
  const auto fetch_keys = [&](int chunk) {
    if constexpr (kStaged) {
      if (chunk < end) fetch_rows<Block>(work, chunk, work.keys, slots(chunk), block.keys);
      copy_commit();
    }
  };
  const auto fetch_values = [&](int chunk) {
    if constexpr (kStaged) {
      if (chunk < end) fetch_rows<Block>(work, chunk, work.values, slots(chunk), block.values);
      copy_commit();
    }
  };
  uint32_t slot = find_slot(p, work, begin);
  slots(begin)[threadIdx.x] = slot;
  __syncthreads();
  fetch_keys(begin);
  fetch_values(begin);
  float key_scale = kScaled ? work.key_scales[slot] : 1.0f;
  float value_scale = kScaled ? work.value_scales[slot] : 1.0f;
  for (int chunk = begin; chunk < end; ++chunk) {
    const uint32_t next = chunk + 1 < end ? find_slot(p, work, chunk + 1) : 0;
    if constexpr (kStaged) copy_wait<1>();  // of the keys; the values are on their way
    __syncthreads();
    score_chunk(p, work, chunk, key_scale, value_scale, block);
    slots(chunk + 1)[threadIdx.x] = next;
    __syncthreads();
    fetch_keys(chunk + 1);
    if constexpr (kScaled) {
      key_scale = work.key_scales[next];
      value_scale = work.value_scales[next];
    }
    weigh_chunk(work, block);
    if constexpr (kStaged) copy_wait<1>();  // of the values
    __syncthreads();
    add_values(work, chunk, block);
    fetch_values(chunk + 1);
  }
  if constexpr (kStaged) copy_wait<0>();
}

/// out = softmax(scale q K^T) V over a row's positions so far.
///
/// Grid:   (rows, kv_heads * groups of kHeads query heads, chunks or 1). Block: kAttendThreads.
/// Shared: AttendBlock::shared(head_dim) bytes.
/// Needs:  head_dim a multiple of kWide; kStaged: and a row of 16 bytes, in the pool, too.
/// Bits:   chunks of kChunk positions, joined in order: the same whether one block walks all of a
///         row's chunks (grid.z = 1) or each has its own and join_chunks follows. In a chunk, a
///         score's dimensions in order; weights summed by lanes of 32, then the lanes by halves;
///         values in slices of every so many positions, as head_dim has it, then the slices in
///         order.
template <class Kv, int kWide, int kHeads, bool kStaged>
__global__ void __launch_bounds__(kAttendThreads, 4) decode_attend(DecodeAttentionArguments p) {
  FS_SHARED(unsigned char, memory);
  let_next_begin();
  wait_for_previous();
  const int dim = p.head_dim, group = p.heads / p.kv_heads;
  const int groups = (group + kHeads - 1) / kHeads;
  const int row = blockIdx.x, kv = blockIdx.y / groups;
  const int head = kv * group + blockIdx.y % groups * kHeads, left = (kv + 1) * group - head;
  const int heads = left < kHeads ? left : kHeads;
  const DecodeRow me = p.row[row];
  if (me.position < 0) {  // stands nowhere
    for (int i = threadIdx.x; i < heads * dim && blockIdx.z == 0; i += kAttendThreads)
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
                            heads,
                            dim,
                            first,
                            static_cast<const Kv*>(p.keys) + pool,
                            static_cast<const Kv*>(p.values) + pool,
                            p.key_scales ? p.key_scales + slots : nullptr,
                            p.value_scales ? p.value_scales + slots : nullptr};
  const AttendBlock<Kv, kWide, kHeads, kStaged> block(memory, dim);
  const float* const q = p.qkv + at(row, (p.heads + 2 * p.kv_heads) * dim, head * dim);
  for (int i = threadIdx.x; i < kHeads * dim; i += kAttendThreads) {
    block.q[i] = i < heads * dim ? q[i] : 0.0f;
    block.acc[i] = 0;
  }
  if (threadIdx.x < kHeads) block.all[threadIdx.x] = {-INFINITY, 0};
  attend_chunks(p, work, begin, end, block);
  for (int i = threadIdx.x; i < heads * dim; i += kAttendThreads) {
    const int h = i / dim, d = i % dim;
    if (!split) {
      p.out[at(row, p.heads * dim, (head + h) * dim + d)] = block.acc[i] / block.all[h].sum;
      continue;
    }
    float* const part =
        p.partials +
        (at(row, p.heads, head + h) * size_t(p.chunks) + size_t(begin)) * size_t(dim + 2);
    part[d] = block.acc[i];
    if (d == 0) part[dim] = block.all[h].peak;
    if (d == 0) part[dim + 1] = block.all[h].sum;
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
