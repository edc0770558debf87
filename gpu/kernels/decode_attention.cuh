// Attention over the paged KV cache by multiply-adds: for what tile_attend does not take.
#pragma once

#include "gpu/kernels/softmax_parts.cuh"
#include "gpu/kernels/wide.cuh"

namespace fastserve::gpu {

constexpr int kChunk = 128;          ///< positions; chunks begin at multiples of it
constexpr int kAttendThreads = 128;  ///< one a position, then one a run of dimensions and a slice
constexpr int kAttendHeads = 4;      ///< query heads that share one reading of keys and values

template <class Kv, int kWide, int kHeads>
struct AttendBlock {
  float *q, *acc;       ///< [kHeads][head_dim]
  float* weights;       ///< [kHeads][kChunk]: scores first
  float* value_scales;  ///< int8: [kChunk]
  float* slices;        ///< [kHeads][kSlices]
  Softmax* all;         ///< [kHeads]
  float *keep, *take;   ///< [kHeads]
  uint32_t* slots;      ///< [2][kChunk], of even and of odd chunks

  static constexpr int kSlices = kAttendThreads * kWide;
  static size_t shared(int dim) {
    return (kHeads * (kSlices + 2 * size_t(dim) + kChunk + 4) + 3 * kChunk) * sizeof(float);
  }
  FS_DEVICE AttendBlock(float* from, int dim) {
    slices = from;
    q = slices + kHeads * kSlices;
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
struct AttendWork : CacheHead<Kv> {
  DecodeRow me;
  int heads, dim, first;  ///< query heads; first position that the row sees
  int row, head;          ///< of the batch; first query head
  /// Rows of a chunk that are seen: from .. to - 1.
  FS_DEVICE int from(int chunk) const {
    return chunk * kChunk > first ? 0 : first - chunk * kChunk;
  }
  FS_DEVICE int to(int chunk) const {
    const int left = me.position + 1 - chunk * kChunk;
    return left < kChunk ? left : kChunk;
  }
};

/// The slot of this thread's position in a chunk, where that is seen.
template <class Kv>
FS_DEVICE uint32_t find_slot(const DecodeAttentionArguments& p, const AttendWork<Kv>& work,
                             int chunk) {
  const int i = threadIdx.x;
  if (i < work.from(chunk) || i >= work.to(chunk)) return kNoSlot;
  return uint32_t(slot_of(p, work.me, chunk * kChunk + i));
}

/// Products of a key and each query head, from where the key lies.
template <class Kv, int kWide, int kHeads>
FS_DEVICE void dot_in_place(const AttendWork<Kv>& work, const Kv* key, const float* q,
                            float (&found)[kHeads]) {
  for (int d = 0; d < work.dim; d += kWide) {
    const Wide<kWide> k = load_wide<kWide>(key + d);
    FS_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      const Wide<kWide> from = load_wide<kWide>(q + h * work.dim + d);
      FS_UNROLL
      for (int e = 0; e < kWide; ++e) found[h] = fmaf(from.v[e], k.v[e], found[h]);
    }
  }
}

/// Scores of a chunk's positions for each query head.
template <class Kv, int kWide, int kHeads>
FS_DEVICE void score_chunk(const DecodeAttentionArguments& p, const AttendWork<Kv>& work,
                           uint32_t slot, const AttendBlock<Kv, kWide, kHeads>& block) {
  float s[kHeads] = {};
  const int i = threadIdx.x;
  const bool seen = slot != kNoSlot;
  if (seen) dot_in_place<Kv, kWide>(work, work.keys + size_t(slot) * size_t(work.dim), block.q, s);
  if constexpr (sizeof(Kv) == 1) block.value_scales[i] = seen ? work.value_scales[slot] : 1.0f;
  FS_UNROLL
  for (int h = 0; h < kHeads; ++h) {
    if constexpr (sizeof(Kv) == 1) s[h] *= seen ? work.key_scales[slot] : 1.0f;
    block.weights[h * kChunk + i] = seen ? s[h] * p.scale * kLog2E : -INFINITY;
  }
}

/// Scores become weights, a warp a query head, and the chunk's softmax is joined to the row's. With
/// int8 values a weight takes its value's scale along, which the sum does not.
template <class Kv, int kWide, int kHeads>
FS_DEVICE void weigh_chunk(const AttendWork<Kv>& work,
                           const AttendBlock<Kv, kWide, kHeads>& block) {
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
template <class Kv, int kWide, int kHeads>
FS_DEVICE void add_values(const AttendWork<Kv>& work, int chunk,
                          const AttendBlock<Kv, kWide, kHeads>& block) {
  const uint32_t* const slots = block.slots + (chunk & 1) * kChunk;
  const int from = work.from(chunk), to = work.to(chunk);
  for (int run = 0; run < work.dim / kWide; run += kAttendThreads) {
    const int rest = work.dim / kWide - run, lanes = rest < kAttendThreads ? rest : kAttendThreads;
    const int count = kAttendThreads / lanes, slice = threadIdx.x / lanes;
    const int dimension = (run + threadIdx.x % lanes) * kWide;
    Wide<kWide> sums[kHeads] = {};
    if (slice < count)
      for (int i = from + slice; i < to; i += count) {
        const Wide<kWide> v =
            load_wide<kWide>(work.values + size_t(slots[i]) * size_t(work.dim) + size_t(dimension));
        FS_UNROLL
        for (int h = 0; h < kHeads; ++h) {
          const float weight = block.weights[h * kChunk + i];
          FS_UNROLL
          for (int e = 0; e < kWide; ++e) sums[h].v[e] = fmaf(weight, v.v[e], sums[h].v[e]);
        }
      }
    constexpr int kSlices = kAttendThreads * kWide;
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
template <class Kv, int kWide, int kHeads>
FS_DEVICE void attend_chunks(const DecodeAttentionArguments& p, const AttendWork<Kv>& work,
                             int begin, int end, const AttendBlock<Kv, kWide, kHeads>& block) {
  const float* const row = p.qkv + at(work.row, (p.heads + 2 * p.kv_heads) * work.dim);
  for (int i = threadIdx.x; i < kHeads * work.dim; i += kAttendThreads) {
    block.q[i] = i < work.heads * work.dim ? row[work.head * work.dim + i] : 0.0f;
    block.acc[i] = 0;
  }
  if (threadIdx.x < kHeads) block.all[threadIdx.x] = {-INFINITY, 0};
  uint32_t slot = find_slot(p, work, begin);
  for (int chunk = begin; chunk < end; ++chunk) {
    block.slots[(chunk & 1) * kChunk + threadIdx.x] = slot;
    __syncthreads();
    score_chunk(p, work, slot, block);
    __syncthreads();
    slot = chunk + 1 < end ? find_slot(p, work, chunk + 1) : kNoSlot;
    weigh_chunk(work, block);
    __syncthreads();
    add_values(work, chunk, block);
  }
}

/// out = softmax(scale q K^T) V over a row's positions so far.
///
/// Grid:   (rows, kv_heads * groups of kHeads query heads, chunks or 1). Block: kAttendThreads.
/// Shared: AttendBlock::shared(head_dim) bytes.
/// Needs:  head_dim a multiple of kWide; queries, keys and values as append_heads leaves them.
/// Bits:   chunks of kChunk positions, joined in order: the same whether one block walks all of a
///         row's chunks (grid.z = 1) or each has its own and join_parts follows. In a chunk, a
///         score's dimensions in order; weights summed by lanes of 32, then the lanes by halves;
///         values in slices of every so many positions, as head_dim has it, then the slices in
///         order.
template <class Kv, int kWide, int kHeads>
__global__ void __launch_bounds__(kAttendThreads, 4) decode_attend(DecodeAttentionArguments p) {
  FS_SHARED(float, memory);
  let_next_begin();
  wait_for_previous();
  const int dim = p.head_dim, group = p.heads / p.kv_heads;
  const int groups = (group + kHeads - 1) / kHeads;
  const int row = blockIdx.x, kv = blockIdx.y / groups;
  const int head = kv * group + blockIdx.y % groups * kHeads, left = (kv + 1) * group - head;
  const int heads = left < kHeads ? left : kHeads;
  const DecodeRow me = p.row[row];
  if (me.position < 0) {
    if (blockIdx.z == 0) leave_out(p, row, head, heads, kAttendThreads);
    return;
  }
  const int first = p.window > 0 && me.position >= p.window ? me.position - p.window + 1 : 0;
  const bool split = gridDim.z > 1;
  const int begin = split ? int(blockIdx.z) : first / kChunk;
  const int end = split ? begin + 1 : me.position / kChunk + 1;
  if (begin < first / kChunk || begin > me.position / kChunk) return;
  const AttendWork<Kv> work{cache_head<Kv>(p, kv), me, heads, dim, first, row, head};
  const AttendBlock<Kv, kWide, kHeads> block(memory, dim);
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

}  // namespace fastserve::gpu
