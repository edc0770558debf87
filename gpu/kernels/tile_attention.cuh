// Attention over the paged KV cache on tensor cores, of answers and of prompts in the same bits.
#pragma once

#include "gpu/kernels/tile_step.cuh"

namespace fastserve::gpu {

/// A number of a unit's output, from what each warp found: in the order of the warps.
template <class Tile>
FS_DEVICE float join_warps(const Tile& tile, int used, int row, int column) {
  float sum = 0;
  FS_UNROLL
  for (int w = 0; w < kTileWarps; ++w) {
    const float take = tile.take[w * kTileRows + row];
    if (!(take < 0))
      sum = joined(sum, tile.keep[w * kTileRows + row],
                   tile.parts[(w * used + row) * kTileColumnsLd + column], take);
  }
  return sum;
}

/// The warps' softmax of a unit, joined, and joined to that of the units before. A thread a row.
template <class Kv, class Tile>
FS_DEVICE void join_softmax(const TileWork<Kv>& work, const Tile& tile, int unit) {
  const int row = threadIdx.x;
  if (row >= work.used()) return;
  Softmax mine{-INFINITY, 0};
  for (int w = 0; w < kTileWarps; ++w) {
    const int i = w * kTileRows + row;
    tile.take[i] = -1;
    if (tile.found[i].sum != 0) mine = join(mine, tile.found[i], tile.keep[i], tile.take[i]);
  }
  const int i = kTileWarps * kTileRows + row, position = work.position(row);
  tile.take[i] = -1;
  if (unit >= work.first(position) / kTileUnit && unit <= position / kTileUnit)
    tile.all[row] = join(tile.all[row], mine, tile.keep[i], tile.take[i]);
  tile.all[kTileRows + row] = mine;
}

/// What a unit came to: to the partial results where units are split over blocks, else to the units
/// before, and with the last one to the output.
template <class Kv, int kDim, int kStages>
FS_DEVICE void finish_unit(const DecodeAttentionArguments& p, const TileWork<Kv>& work,
                           const AttendTile<Kv, kDim, kStages>& tile, int unit, bool last,
                           TileState<kDim>& state) {
  using Tile = AttendTile<Kv, kDim, kStages>;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, used = work.used();
  FS_UNROLL
  for (int i = 0; i < 2; ++i) {
    float sum = state.sum[i];
    sum += __shfl_xor_sync(kWholeWarp, sum, 1);
    sum += __shfl_xor_sync(kWholeWarp, sum, 2);
    if (lane % 4 == 0) tile.found[warp * kTileRows + lane / 4 + 8 * i] = {state.peak[i], sum};
  }
  sync_first<kTileThreads>();
  join_softmax(work, tile, unit);
  const int width = p.heads * work.dim;
  FS_UNROLL
  for (int from = 0; from < kDim; from += kTileColumns) {
    FS_UNROLL
    for (int n = 0; n < kTileColumns / 8; ++n) {
      FS_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int row = lane / 4 + e / 2 * 8, t = lane % 4;
        const int column =
            Tile::kScaled ? n / 2 * 16 + 4 * t + e % 2 * 2 + n % 2 : n * 8 + 2 * t + e % 2;
        if (row < used)
          tile.parts[(warp * used + row) * kTileColumnsLd + column] = state.acc[from / 8 + n][e];
      }
    }
    sync_first<kTileThreads>();
    // A thread has a column, of every so many rows.
    static_assert(kTileThreads % kTileColumns == 0);
    const int column = threadIdx.x % kTileColumns, d = from + column;
    FS_NO_UNROLL
    for (int row = threadIdx.x / kTileColumns; row < used && d < work.dim;
         row += kTileThreads / kTileColumns) {
      const int of = work.row_of(row), head = work.head + row - of * work.heads;
      const int batch_row = work.row + of;
      const float sum = join_warps(tile, used, row, column);
      if (p.partials) {
        float* const part =
            p.partials +
            (at(batch_row, p.heads, head) * size_t(p.chunks) + size_t(unit)) * size_t(work.dim + 2);
        part[d] = sum;
        if (d == 0) part[work.dim] = tile.all[kTileRows + row].peak;
        if (d == 0) part[work.dim + 1] = tile.all[kTileRows + row].sum;
        continue;
      }
      float& total = tile.total[row * kDim + d];
      const int joins = kTileWarps * kTileRows + row;
      if (!(tile.take[joins] < 0)) total = joined(total, tile.keep[joins], sum, tile.take[joins]);
      if (last) p.out[at(batch_row, width, head * work.dim + d)] = total / tile.all[row].sum;
    }
    sync_first<kTileThreads>();  // the parts are overwritten next
  }
  state.clear();
}

/// The row's heads as the product left them, into shared memory: queries where the units' parts
/// will be and, if `last`, its key and value. All loads are on their way at once.
template <class Kv, int kDim, int kStages>
FS_DEVICE void bring_heads(const DecodeAttentionArguments& p, const TileWork<Kv>& work, bool last,
                           const AttendTile<Kv, kDim, kStages>& tile) {
  constexpr int kAtOnce = 5;
  const int used = work.used(), count = (used + (last ? 2 : 0)) * kDim;
  const float* const row = p.qkv + at(work.row, (p.heads + 2 * p.kv_heads) * work.dim);
  FS_NO_UNROLL
  for (int base = threadIdx.x; base < count; base += kAtOnce * kTileThreads) {
    float v[kAtOnce] = {};
    FS_UNROLL
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = base + k * kTileThreads, item = i / kDim, d = i % kDim;
      const int head =
          item < used ? work.head + item : p.heads + (item - used) * p.kv_heads + work.kv;
      if (i < count && d < work.dim) v[k] = row[head * work.dim + d];
    }
    FS_UNROLL
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = base + k * kTileThreads, own = i - used * kDim;
      if (i < count) (own < 0 ? tile.parts + i : tile.own_room + own)[0] = v[k];
    }
  }
}

/// Queries as they attend, into the tile; where the block appends, as the product left them until
/// now, and if `last` the row's key and value go to shared memory and to the cache.
template <class Kv, int kDim, int kStages>
FS_DEVICE void bring_queries(const DecodeAttentionArguments& p, const TileWork<Kv>& work, bool last,
                             const AttendTile<Kv, kDim, kStages>& tile) {
  const int lane = threadIdx.x & 31, used = work.used(), all = p.heads + 2 * p.kv_heads;
  if (p.appends) bring_heads(p, work, last, tile);
  for (int i = threadIdx.x; i < used * kDim; i += kTileThreads) tile.total[i] = 0;
  if (threadIdx.x < kTileRows) tile.all[threadIdx.x] = {-INFINITY, 0};
  if (p.appends && last)  // what lies past head_dim
    for (int i = threadIdx.x; i < 2 * kDim; i += kTileThreads)
      reinterpret_cast<Kv*>(tile.own)[i] = Kv{};
  if (p.appends) sync_first<kTileThreads>();
  const float* const rope = p.rope_table ? tile.rope : nullptr;
  FS_NO_UNROLL
  for (int item = threadIdx.x / 32; item < kTileRows + (p.appends && last ? 2 : 0);
       item += kTileWarps) {
    if (item < kTileRows) {
      const float* query = nullptr;
      if (item < used) {
        const int head = work.head + item % work.heads;
        query = p.qkv + at(work.row + item / work.heads, all * work.dim, head * work.dim);
        if (p.appends) {
          float* const turned = tile.parts + item * kDim;
          turn_head(p, rope, head, turned, [&](int i, float v) { turned[i] = v; });
          __syncwarp();
          query = turned;
        }
      }
      place_query(tile, query, work.dim, item, p.scale);
      continue;
    }
    const int half = item - kTileRows, h = p.heads + half * p.kv_heads + work.kv;
    const size_t slot = slot_of(p, work.me, work.me.position);
    Kv* const own = reinterpret_cast<Kv*>(tile.own) + half * kDim;
    Kv* const to = const_cast<Kv*>(half == 0 ? work.keys : work.values) + slot * size_t(work.dim);
    float* const head = tile.own_room + half * kDim;
    const float scale = turn_into<Kv>(p, rope, h, head, head, [&](int i, Kv v) {
      own[i] = v;
      if (work.writes) to[i] = v;
    });
    if (sizeof(Kv) > 1 || lane != 0) continue;
    tile.own_scales[half] = scale;
    if (work.writes)
      const_cast<float*>(half == 0 ? work.key_scales : work.value_scales)[slot] = scale;
  }
}

/// Units begin .. end - 1 of a tile, one after another.
template <class Kv, int kDim, int kStages, class Wait>
FS_DEVICE void attend_units(const DecodeAttentionArguments& p, const TileWork<Kv>& work, int begin,
                            int end, const AttendTile<Kv, kDim, kStages>& tile, const Wait& wait) {
  using Tile = AttendTile<Kv, kDim, kStages>;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const int first = work.first(work.me.position), last = work.last();
  const bool appends = p.appends && end == last / kTileUnit + 1;
  const int cached = appends ? last : last + 1, stop = end * kTileSteps;
  const auto position_of = [&](int step) { return (step * kTileWarps + warp) * kTileStep; };
  // The warp's steps of which something is seen.
  const int seen_from = (first / kTileStep - warp + kTileWarps - 1) / kTileWarps;
  const int seen_to = last / kTileStep < warp ? 0 : (last / kTileStep - warp) / kTileWarps + 1;
  const auto seen = [&](int step) { return step >= seen_from && step < seen_to && step < stop; };
  const auto find = [&](int step) {
    const int position = position_of(step) + (lane & 15);
    if (step >= stop || position < first || position >= cached) return kNoSlot;
    return uint32_t(slot_of(p, work.me, position));
  };
  const auto fetch = [&](int step, int stage, uint32_t slot) {
    if (seen(step)) tile.fetch(work, stage, slot);
    copy_commit();
    return tile.load_scale(work, slot);
  };
  const int start = begin * kTileSteps;
  uint32_t slots[kStages + 1];
  float scales[kStages];
  FS_UNROLL
  for (int i = 0; i <= kStages; ++i) slots[i] = find(start + i);
  FS_UNROLL
  for (int i = 0; i < kStages; ++i) scales[i] = fetch(start + i, i, slots[i]);
  if (p.appends) {
    if (const float* const rope = rope_of(p, work.me))
      for (int i = threadIdx.x; i < work.dim; i += kTileThreads) tile.rope[i] = rope[i];
    wait();
  }
  bring_queries(p, work, appends, tile);
  FS_UNROLL
  for (int i = 0; i < kStages; ++i) tile.place_scale(i, scales[i]);
  sync_first<kTileThreads>();
  const TileSight sight(work, tile);
  uint32_t slot = slots[kStages];  // of the step that is fetched next
  float scale = scales[kStages - 1];
  TileState<kDim> state;
  state.clear();
  FS_NO_UNROLL
  for (int step = start, stage = 0, before = kStages - 1; step < stop; ++step) {
    tile.place_scale(before, scale);
    copy_wait<kStages - 1>();
    __syncwarp();
    if (seen(step)) {
      const int own = last - position_of(step);
      if (appends && own >= 0 && own < kTileStep) {
        tile.place_own(stage, own);
        __syncwarp();
      }
      attend_step(tile, sight, stage, position_of(step), state);
    }
    __syncwarp();  // the step's room is filled next
    scale = fetch(step + kStages, stage, slot);
    slot = find(step + kStages + 1);
    before = stage;
    stage = Tile::next_stage(stage);
    if (step % kTileSteps == kTileSteps - 1)
      finish_unit(p, work, tile, step / kTileSteps, step == stop - 1, state);
  }
  copy_wait<0>();
}

/// `rows` neighbours in a sequence, from `row` on, by the first kTileThreads threads of a block,
/// all of which call: `heads` query heads of a key-value head, the `part`-th of such; all of their
/// units or, where there are partial results, the `turn`-th run of p.units. Where it appends,
/// wait() stands between what does not depend on earlier work and what does.
template <class Kv, int kDim, int kStages, class Wait>
FS_DEVICE void attend_rows(const DecodeAttentionArguments& p, int row, int rows, int part, int turn,
                           int heads, unsigned char* memory, const Wait& wait) {
  const int dim = p.head_dim, group = p.heads / p.kv_heads, groups = (group + heads - 1) / heads;
  const int kv = part / groups, ahead = part % groups * heads;
  const int head = kv * group + ahead, mine = group - ahead < heads ? group - ahead : heads;
  const DecodeRow me = p.row[row];
  if (me.position < 0) {  // it has a block of its own
    wait();
    if (turn == 0) leave_out(p, row, head, mine, kTileThreads);
    return;
  }
  const TileWork<Kv> work{
      cache_head<Kv>(p, kv),  me, row, rows, mine, dim, p.window, kv, head, ahead == 0,
      (256 + mine - 1) / mine};
  int begin = work.first(me.position) / kTileUnit, end = work.last() / kTileUnit + 1;
  if (p.partials) {
    if (begin < turn * p.units) begin = turn * p.units;
    if (end > (turn + 1) * p.units) end = (turn + 1) * p.units;
  }
  if (begin >= end) return wait();
  attend_units(p, work, begin, end, AttendTile<Kv, kDim, kStages>(memory, work.used()), wait);
}

/// out = softmax(scale q K^T) V over each row's positions so far.
///
/// Grid:   (blocks of the spans, kv_heads * groups of `heads` query heads, runs of units or 1).
/// Block:  kTileThreads. Shared: AttendTile::shared(rows of queries).
/// Needs:  head_dim up to kDim, of whole 16 bytes in the cache. Where it appends, a row a block,
///         and the block reads places, block tables and the cache at positions before its row's
///         while kernels ahead of it in the chain may still run: none of those writes any of that.
///         So the rows' places, tables and earlier keys and values are there before the chain
///         begins, and no two rows are of one sequence. The row's own position is not read at all.
/// Bits:   a row's own, whatever else is in its tile. Positions in steps of kTileStep that warps
///         take in turn; a warp's steps of a unit one after another, halves of queries and weights
///         and what those leave as products of their own; then the warps in order, and the units in
///         order: the same whether a block walks all of them (grid.z = 1) or some and join_parts
///         follows.
template <class Kv, int kDim, int kStages>
__global__ void __launch_bounds__(kTileThreads, tile_blocks(kDim))
    tile_attend(DecodeAttentionArguments p, TileSpans spans, int heads) {
  FS_SHARED(unsigned char, memory);
  let_next_begin();
  if (!p.appends) wait_for_previous();  // else further down
  int which = 0;
  while (which + 1 < spans.count && int(blockIdx.x) >= spans.of[which + 1].block) ++which;
  const TileSpan span = spans.of[which];
  const int blocks = (span.rows + span.each - 1) / span.each;
  // Blocks with most to do start first.
  const int from = (blocks - 1 - (int(blockIdx.x) - span.block)) * span.each;
  const int rows = span.rows - from < span.each ? span.rows - from : span.each;
  attend_rows<Kv, kDim, kStages>(p, span.row + from, rows, int(blockIdx.y), int(blockIdx.z), heads,
                                 memory, ChainWait{});
}

}  // namespace fastserve::gpu
