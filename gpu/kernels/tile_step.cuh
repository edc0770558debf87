// What a warp of tile_attend makes of a step: scores, weights and sums.
#pragma once

#include "gpu/kernels/attend_tile.cuh"

namespace fastserve::gpu {

/// What a warp knows of its steps of a unit: rows g and g + 8 of each lane.
template <int kDim>
struct TileState {
  float acc[kDim / 8][4];
  float peak[2], sum[2];

  FS_DEVICE void clear() {
    FS_UNROLL
    for (int n = 0; n < kDim / 8; ++n) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
    peak[0] = peak[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }
};

/// The positions that rows g and g + 8 of a lane see; none, of a row that is not there.
struct TileSight {
  int first[2], last[2];
  float factor[2];
  int all_from, all_to;  ///< what all rows see
  bool several;          ///< which may not see all that others do
  template <class Kv, class Tile>
  FS_DEVICE TileSight(const TileWork<Kv>& work, const Tile& tile)
      : all_from(work.first(work.last())), all_to(work.me.position), several(work.rows > 1) {
    FS_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int row = (threadIdx.x & 31) / 4 + 8 * i;
      last[i] = row < work.used() ? work.position(row) : -1;
      first[i] = work.first(last[i]);
      factor[i] = tile.factors[row];
    }
  }
  FS_DEVICE bool there(int i) const { return last[i] >= 0; }  ///< the row is a query's
  FS_DEVICE bool sees(int i, int position) const {
    return position >= first[i] && position <= last[i];
  }
  /// Whether every row sees all of a step; others may then be taken to see it, too.
  FS_DEVICE bool all(int step_first) const {
    return step_first >= all_from && step_first + kTileStep - 1 <= all_to;
  }
};

/// A step's scores become weights against the peaks so far, of which the rows' sums are taken.
template <bool kAll, class Tile, int kDim>
FS_DEVICE void weigh_step(const TileSight& sight, const float* scales, int first, float (&s)[2][4],
                          float (&kept)[2], TileState<kDim>& state) {
  const int column = (threadIdx.x & 3) * 2;
  FS_UNROLL
  for (int i = 0; i < 2; ++i) {
    const auto sees = [&](int key) { return kAll || sight.sees(i, first + key); };
    float top = state.peak[i];
    FS_UNROLL
    for (int k = 0; k < 4; ++k) {  // of the row, in order
      float& x = s[k / 2][2 * i + k % 2];
      const int key = k / 2 * 8 + column + k % 2;
      x *= sight.factor[i];
      if constexpr (Tile::kScaled)
        x = fmaf(x, scales[kKey * kTileStep + key], scales[kExponent * kTileStep + key]);
      x = sees(key) ? x : -INFINITY;
      top = fmaxf(top, x);
    }
    top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 2));
    const float base = top == -INFINITY ? 0.0f : top;
    kept[i] = fast_exp2(state.peak[i] - base);
    state.peak[i] = top;
    state.sum[i] *= kept[i];
    FS_UNROLL
    for (int k = 0; k < 4; ++k) {
      float& x = s[k / 2][2 * i + k % 2];
      const int key = k / 2 * 8 + column + k % 2;
      x = fast_exp2(x - (base - Tile::kWeightBits));
      if constexpr (Tile::kScaled) {  // a value's scale is in the weight, and not in the sum
        const float weight = x * scales[kMantissa * kTileStep + key];
        state.sum[i] = fmaf(x, scales[kInverse * kTileStep + key], state.sum[i]);
        x = sees(key) ? weight : 0.0f;
      } else {
        state.sum[i] += x;
      }
    }
  }
}

/// One step: scores, weights, values. A row that sees nothing of it keeps its state: it is scaled
/// by 1, and zeros are added to it. `stage`: the step's.
template <class Kv, int kDim, int kStages>
FS_DEVICE void attend_step(const AttendTile<Kv, kDim, kStages>& tile, const TileSight& sight,
                           int stage, int first, TileState<kDim>& state) {
  using Tile = AttendTile<Kv, kDim, kStages>;
  unsigned char* const room = tile.step_room(stage);
  const float* const scales = tile.step_scales(stage);
  float s[2][4], kept[2];
  tile_scores(tile, room, s);
  const bool all = sight.all(first);
  if (all)
    weigh_step<true, Tile>(sight, scales, first, s, kept, state);
  else
    weigh_step<false, Tile>(sight, scales, first, s, kept, state);
  // Peaks seldom rise after the first steps. No -0 comes of it: adding zeros would change that.
  const bool rises = (kept[0] != 1 && sight.there(0)) || (kept[1] != 1 && sight.there(1));
  if (__ballot_sync(kWholeWarp, rises) != 0) {
    FS_UNROLL
    for (int n = 0; n < kDim / 8; ++n) {
      FS_UNROLL
      for (int e = 0; e < 4; ++e) state.acc[n][e] = fmaf(state.acc[n][e], kept[e >> 1], 0.0f);
    }
  }
  uint32_t high[4], low[4];
  FS_UNROLL
  for (int r = 0; r < 4; ++r) {
    const float a = s[r / 2][r % 2 * 2], b = s[r / 2][r % 2 * 2 + 1];
    const float top_a = bits_float(float_bits(a) & 0xffffe000u),
                top_b = bits_float(float_bits(b) & 0xffffe000u);
    high[r] = pack_two<Float16>(top_a, top_b);
    low[r] = pack_two<Float16>(a - top_a, b - top_b);
  }
  if constexpr (!Tile::kScaled)
    if (sight.several && !all)
      add_spoilt<Tile, kDim>(
          room + Tile::kStepBytes, high, low,
          [&](int i, int key) { return sight.sees(i, first + key); }, state.acc);
  add_step<Kv, kDim, kStages>(room + Tile::kStepBytes, high, low, state.acc);
}

}  // namespace fastserve::gpu
