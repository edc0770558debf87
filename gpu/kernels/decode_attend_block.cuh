// How a block of decode_attend holds what it works on, and brings it there.
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
  // Where it appends: the row's own key and value, their scales, and room to find them.
  unsigned char* own;  ///< [2][head_dim] of Kv
  float *own_scales, *own_room;

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
    const size_t own = kStaged ? 2 * size_t(dim) * (sizeof(Kv) + (sizeof(Kv) == 1 ? 4 : 0)) : 0;
    return rows_bytes(dim) + values_bytes(dim) + own +
           (kHeads * (2 * size_t(dim) + kChunk + 4) + 3 * kChunk + 2) * sizeof(float);
  }
  FS_DEVICE AttendBlock(unsigned char* from, int dim) {
    keys = from;
    values = keys + rows_bytes(dim);
    slices = reinterpret_cast<float*>(values);
    own = values + values_bytes(dim);
    q = reinterpret_cast<float*>(own + (kStaged ? 2 * dim * int(sizeof(Kv)) : 0));
    acc = q + kHeads * dim;
    weights = acc + kHeads * dim;
    value_scales = weights + kHeads * kChunk;
    slots = reinterpret_cast<uint32_t*>(value_scales + kChunk);
    all = reinterpret_cast<Softmax*>(slots + 2 * kChunk);
    keep = reinterpret_cast<float*>(all + kHeads);
    take = keep + kHeads;
    own_scales = take + kHeads;
    own_room = own_scales + 2;
  }
};

/// What a block works on: some query heads of one row over one key-value head.
template <class Kv>
struct AttendWork {
  DecodeRow me;
  int heads, dim, first;  ///< query heads; first position that the row sees
  int row, kv, head;      ///< of the batch; of the key-value heads; first query head
  bool writes;            ///< of the blocks that append a key and value, this one stores them
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

constexpr uint32_t kNoSlot = ~uint32_t{0};

/// The slot of this thread's position in a chunk, where that is seen and in front of `end`.
template <class Kv>
FS_DEVICE uint32_t find_slot(const DecodeAttentionArguments& p, const AttendWork<Kv>& work,
                             int chunk, int end) {
  const int i = threadIdx.x;
  if (i < work.from(chunk) || i >= end) return kNoSlot;
  return uint32_t(slot_of(p, work.me, chunk * kChunk + i));
}

/// Starts the copies of a chunk's keys, or values, in front of row `end`.
template <class Block, class Kv>
FS_DEVICE void fetch_rows(const AttendWork<Kv>& work, int chunk, int end, const Kv* pool,
                          const uint32_t* slots, unsigned char* to) {
  const int pieces = Block::pieces(work.dim), bytes = Block::row_bytes(work.dim);
  const int rows = kAttendThreads / pieces, rest = kAttendThreads % pieces;
  const int begin = work.from(chunk);
  int row = begin + int(threadIdx.x) / pieces, piece = int(threadIdx.x) % pieces;
  FS_NO_UNROLL
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

/// Queries as the product left them become those that attend; if `last`, the row's key and value go
/// to shared memory and to the cache.
template <class Kv, int kWide, int kHeads, bool kStaged>
FS_DEVICE void append_own(const DecodeAttentionArguments& p, const AttendWork<Kv>& work, bool last,
                          const AttendBlock<Kv, kWide, kHeads, kStaged>& block) {
  const int dim = work.dim, lane = threadIdx.x & 31;
  const float* const row = p.qkv + at(work.row, (p.heads + 2 * p.kv_heads) * dim);
  FS_NO_UNROLL
  for (int item = threadIdx.x / 32; item < work.heads + 2; item += kAttendThreads / 32) {
    if (item < work.heads) {
      const int h = work.head + item;
      turn_head(p, work.me, h, row + h * dim, [&](int i, float v) { block.q[item * dim + i] = v; });
      continue;
    }
    if (!last) continue;
    const int half = item - work.heads, h = p.heads + half * p.kv_heads + work.kv;
    const size_t slot = slot_of(p, work.me, work.me.position);
    Kv* const own = reinterpret_cast<Kv*>(block.own) + half * dim;
    Kv* const to = const_cast<Kv*>(half == 0 ? work.keys : work.values) + slot * size_t(dim);
    const float scale =
        turn_into<Kv>(p, work.me, h, row + h * dim, block.own_room + half * dim, [&](int i, Kv v) {
          own[i] = v;
          if (work.writes) to[i] = v;
        });
    if (sizeof(Kv) > 1 || lane != 0) continue;
    block.own_scales[half] = scale;
    if (work.writes)
      const_cast<float*>(half == 0 ? work.key_scales : work.value_scales)[slot] = scale;
  }
}

/// The block's queries, from where append_heads left them or as append_own() finds them.
template <class Kv, int kWide, int kHeads, bool kStaged>
FS_DEVICE void bring_heads(const DecodeAttentionArguments& p, const AttendWork<Kv>& work, bool last,
                           const AttendBlock<Kv, kWide, kHeads, kStaged>& block) {
  const int dim = work.dim;
  const float* const row = p.qkv + at(work.row, (p.heads + 2 * p.kv_heads) * dim);
  FS_NO_UNROLL
  for (int i = threadIdx.x; i < kHeads * dim; i += kAttendThreads) {
    if (!p.appends || i >= work.heads * dim)
      block.q[i] = i < work.heads * dim ? row[work.head * dim + i] : 0.0f;
    block.acc[i] = 0;
  }
  if (threadIdx.x < kHeads) block.all[threadIdx.x] = {-INFINITY, 0};
  if constexpr (kStaged)
    if (p.appends) append_own(p, work, last, block);
}

/// The row's own key and value join those of its last chunk.
template <class Kv, int kWide, int kHeads, bool kStaged>
FS_DEVICE void place_own(const AttendWork<Kv>& work,
                         const AttendBlock<Kv, kWide, kHeads, kStaged>& block) {
  const int pieces = block.pieces(work.dim), row = work.me.position % kChunk;
  FS_NO_UNROLL
  for (int i = threadIdx.x; i < 2 * pieces; i += kAttendThreads) {
    unsigned char* const to = (i < pieces ? block.keys : block.values) +
                              row * block.row_bytes(work.dim) +
                              block.place(work.dim, row, i % pieces);
    *reinterpret_cast<uint4*>(to) = reinterpret_cast<const uint4*>(block.own)[i];
  }
}

}  // namespace fastserve::gpu
