// Attention over the paged KV cache.
#pragma once

#include "gpu/kernels/decode_attend_block.cuh"

namespace fastserve::gpu {

/// Lanes that share a key, each of which takes every fourth piece of 16 bytes of it.
constexpr int kKeyLanes = 4;

/// Position of a warp's 32 that a lane has key k of: eight neighbouring lanes read rows r and r +
/// 4, whose pieces lie in other banks.
FS_DEVICE int key_of(int lane, int k) {
  const int group = lane / kKeyLanes;
  return k * 8 + ((group & 1) << 2 | group >> 1);
}

/// Two lanes have two sums each: one keeps the even ones' total, the other the odd ones'.
FS_DEVICE float keep_half(float even, float odd, bool keeps_odd, int lanes) {
  const float given = __shfl_xor_sync(kWholeWarp, keeps_odd ? even : odd, lanes);
  return (keeps_odd ? odd : even) + given;
}

/// Scores of this thread's position for each query head, of staged keys. Four lanes walk four keys
/// together, so that a query's numbers are read for four keys at once: shared memory gives 128
/// bytes a cycle, also where all lanes ask for the same 16.
template <class Kv, int kWide, int kHeads>
FS_DEVICE void dot_staged(const AttendWork<Kv>& work,
                          const AttendBlock<Kv, kWide, kHeads, true>& block,
                          float (&found)[kHeads]) {
  constexpr int kPer = 16 / int(sizeof(Kv));
  const int lane = threadIdx.x & 31, part = lane % kKeyLanes, first = threadIdx.x / 32 * 32;
  float s[kKeyLanes][kHeads] = {};
  for (int piece = part; piece < block.pieces(work.dim); piece += kKeyLanes) {
    FS_UNROLL
    for (int d = 0; d < kPer; d += kWide) {
      Wide<kWide> q[kHeads];
      FS_UNROLL
      for (int h = 0; h < kHeads; ++h)
        q[h] = load_wide<kWide>(block.q + h * work.dim + piece * kPer + d);
      FS_UNROLL
      for (int k = 0; k < kKeyLanes; ++k) {
        const Wide<kWide> key = load_wide<kWide>(
            block.staged(block.keys, work.dim, first + key_of(lane, k), piece * kPer + d));
        FS_UNROLL
        for (int h = 0; h < kHeads; ++h) {
          FS_UNROLL
          for (int e = 0; e < kWide; ++e) s[k][h] = fmaf(q[h].v[e], key.v[e], s[k][h]);
        }
      }
    }
  }
  FS_UNROLL
  for (int h = 0; h < kHeads; ++h) {  // the lane ends with key `part` of the four
    const float low = keep_half(s[0][h], s[1][h], part & 1, 1);
    const float high = keep_half(s[2][h], s[3][h], part & 1, 1);
    found[h] = keep_half(low, high, part >> 1, 2);
  }
}
/// The same from where the key lies, in the same order.
template <class Kv, int kWide, int kHeads>
FS_DEVICE void dot_in_place(const AttendWork<Kv>& work, const Kv* key, const float* q,
                            float (&found)[kHeads]) {
  constexpr int kPer = 16 / int(sizeof(Kv));
  float s[kKeyLanes][kHeads] = {};
  FS_UNROLL
  for (int part = 0; part < kKeyLanes; ++part)
    for (int piece = part * kPer; piece < work.dim; piece += kKeyLanes * kPer)
      for (int d = piece; d < piece + kPer && d < work.dim; d += kWide) {
        const Wide<kWide> k = load_wide<kWide>(key + d);
        FS_UNROLL
        for (int h = 0; h < kHeads; ++h) {
          const Wide<kWide> from = load_wide<kWide>(q + h * work.dim + d);
          FS_UNROLL
          for (int e = 0; e < kWide; ++e) s[part][h] = fmaf(from.v[e], k.v[e], s[part][h]);
        }
      }
  FS_UNROLL
  for (int h = 0; h < kHeads; ++h) found[h] = (s[0][h] + s[1][h]) + (s[2][h] + s[3][h]);
}

/// Scores of a chunk's positions for each query head.
template <class Kv, int kWide, int kHeads, bool kStaged>
FS_DEVICE void score_chunk(const DecodeAttentionArguments& p, const AttendWork<Kv>& work, int chunk,
                           float key_scale, float value_scale,
                           const AttendBlock<Kv, kWide, kHeads, kStaged>& block) {
  float s[kHeads] = {};
  int i = threadIdx.x;
  if constexpr (sizeof(Kv) == 1) block.value_scales[i] = value_scale;
  if constexpr (kStaged) {
    dot_staged(work, block, s);
    const int lane = threadIdx.x & 31, mine = key_of(lane, lane % kKeyLanes);
    if constexpr (sizeof(Kv) == 1) key_scale = __shfl_sync(kWholeWarp, key_scale, mine);
    i = threadIdx.x / 32 * 32 + mine;
  }
  const bool seen = i >= work.from(chunk) && i < work.to(chunk);
  if constexpr (!kStaged) {
    const uint32_t slot = block.slots[(chunk & 1) * kChunk + i];
    if (seen)
      dot_in_place<Kv, kWide>(work, work.keys + size_t(slot) * size_t(work.dim), block.q, s);
  }
  FS_UNROLL
  for (int h = 0; h < kHeads; ++h) {
    if constexpr (sizeof(Kv) == 1) s[h] *= key_scale;
    block.weights[h * kChunk + i] = seen ? s[h] * p.scale * kLog2E : -INFINITY;
  }
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
  /// The chunk in which the block appends, or none.
  const int own = kStaged && p.appends ? work.me.position / kChunk : -1;
  const auto cached = [&](int chunk) { return work.to(chunk) - (chunk == own ? 1 : 0); };
  const auto fetch = [&](int chunk, const Kv* pool, unsigned char* to) {
    if constexpr (kStaged) {
      if (chunk < end) fetch_rows<Block>(work, chunk, cached(chunk), pool, slots(chunk), to);
      copy_commit();
    }
  };
  float key_scale = 1, value_scale = 1;
  const auto find_scales = [&](uint32_t slot) {
    if (!kScaled || slot == kNoSlot) return;
    key_scale = work.key_scales[slot];
    value_scale = work.value_scales[slot];
  };
  const uint32_t slot = find_slot(p, work, begin, cached(begin));
  slots(begin)[threadIdx.x] = slot;
  __syncthreads();
  fetch(begin, work.keys, block.keys);
  fetch(begin, work.values, block.values);
  bring_heads(p, work, own == end - 1, block);
  find_scales(slot);
  for (int chunk = begin; chunk < end; ++chunk) {
    const uint32_t next =
        chunk + 1 < end ? find_slot(p, work, chunk + 1, cached(chunk + 1)) : kNoSlot;
    if constexpr (kStaged) copy_wait<1>();  // of the keys; the values are on their way
    __syncthreads();
    if (kStaged && chunk == own) {
      place_own(work, block);
      if (kScaled && int(threadIdx.x) == work.me.position % kChunk) {
        key_scale = block.own_scales[0];
        value_scale = block.own_scales[1];
      }
      __syncthreads();
    }
    score_chunk(p, work, chunk, key_scale, value_scale, block);
    slots(chunk + 1)[threadIdx.x] = next;
    __syncthreads();
    fetch(chunk + 1, work.keys, block.keys);
    find_scales(next);
    weigh_chunk(work, block);
    if constexpr (kStaged) copy_wait<1>();  // of the values
    __syncthreads();
    add_values(work, chunk, block);
    fetch(chunk + 1, work.values, block.values);
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
///         score's dimensions by every fourth 16 bytes of the key, in order, (0 + 1) + (2 + 3);
///         weights summed by lanes of 32, then the lanes by halves;
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
                            row,
                            kv,
                            head,
                            blockIdx.y % groups == 0,
                            static_cast<const Kv*>(p.keys) + pool,
                            static_cast<const Kv*>(p.values) + pool,
                            p.key_scales ? p.key_scales + slots : nullptr,
                            p.value_scales ? p.value_scales + slots : nullptr};
  const AttendBlock<Kv, kWide, kHeads, kStaged> block(memory, dim);
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
