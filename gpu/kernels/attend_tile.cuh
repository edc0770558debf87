// How a block of tile_attend holds its query rows, and how its warps walk keys and values.
//
// A row of an mma depends on that row alone, so that a tile holds whatever queries are there: heads
// that share a key-value head, of one row or of several of a sequence. What a row does not see has
// weight 0, and leaves its sums in the bits that they had.
#pragma once

#include "gpu/kernels/softmax_parts.cuh"
#include "gpu/simt/codes.h"
#include "gpu/simt/tensor_core.h"

namespace fastserve::gpu {

constexpr int kTileRows = 16;  ///< of queries
constexpr int kTileWarps = 4;  ///< each takes every fourth step
constexpr int kTileThreads = 32 * kTileWarps;
constexpr int kTileStep = 16;  ///< positions that a warp meets at once
constexpr int kTileSteps = 4;  ///< of a warp in a unit
constexpr int kTileUnit = kTileStep * kTileSteps * kTileWarps;  ///< positions; begins at multiples
constexpr int kTileColumns = 64;                                ///< that warps join at a time
constexpr int kTileColumnsLd = kTileColumns + 8;                ///< rows lie in other banks
constexpr float kLeastScale = 0x1p-60f;  ///< of int8 values: a weight by it is still a number

/// Rows of a batch that lie in blocks of `each`, from block `block` on: neighbours in a sequence.
struct TileSpan {
  int block, row, rows, each;
};
struct TileSpans {
  static constexpr int kMost = 16;
  TileSpan of[kMost];
  int count;
};

/// What a block works on: `heads` query heads of `rows` rows of a sequence, over one key-value
/// head.
template <class Kv>
struct TileWork : CacheHead<Kv> {
  DecodeRow me;  ///< the first row; the others follow it
  int row;       ///< of the batch
  int rows, heads, dim, window;
  int kv, head;  ///< of the key-value heads; first query head
  bool writes;   ///< of the blocks that append a key and value, this one stores them
  int inverse;   ///< 256 / heads, rounded up

  FS_DEVICE int used() const { return rows * heads; }
  /// tile_row / heads: exact, since both are at most kTileRows.
  FS_DEVICE int row_of(int tile_row) const { return tile_row * inverse >> 8; }
  FS_DEVICE int position(int tile_row) const { return me.position + row_of(tile_row); }
  FS_DEVICE int last() const { return me.position + rows - 1; }
  /// First position that one at `position` sees.
  FS_DEVICE int first(int position) const {
    return window > 0 && position >= window ? position - window + 1 : 0;
  }
};

/// What a step has of a position's scales: the key's; of the value's the exponent, the mantissa,
/// and 2^-exponent.
enum Scale { kKey, kExponent, kMantissa, kInverse, kScales };

/// The least shape of the kernel that has room for a head.
constexpr int tile_dim(int dim) { return dim <= 64 ? 64 : dim <= 128 ? 128 : 256; }
/// Blocks that a multiprocessor runs at once.
constexpr int tile_blocks(int dim) { return dim <= 64 ? 4 : dim <= 128 ? 2 : 1; }
/// Shared memory of a block: numbers of `number` bytes in heads of `dim`, as tile_dim() has it, and
/// `used` rows of queries.
constexpr size_t tile_bytes(int number, int dim, int stages, int used) {
  const int step = kTileStep * dim * number, queries = kTileRows * dim * 2;
  const int scaled = number == 1 ? kTileWarps * stages * kScales * kTileStep + 2 : 0;
  const int floats = used * (kTileWarps * kTileColumnsLd + dim) +
                     kTileRows * (1 + 2 * kTileWarps + 4 + 2 * (kTileWarps + 1)) + 3 * dim + scaled;
  return size_t(kTileWarps * stages * 2 * step + 2 * queries + 2 * dim * number + 4 * floats);
}

/// Shared memory. Rows of keys, values and queries are pieces of 16 bytes that change places, so
/// that those of eight rows lie in other banks.
template <class Kv, int kDim, int kStages>
struct AttendTile {
  static constexpr bool kScaled = sizeof(Kv) == 1;
  /// Weights are up to 2^15, so that as halves the small ones keep their digits: by the mantissa of
  /// a scale, which is up to 2, where there are scales.
  static constexpr float kWeightBits = kScaled ? 14 : 15;
  static constexpr int kPer = 16 / int(sizeof(Kv)), kPieces = kDim / kPer;
  static constexpr int kRowBytes = kDim * int(sizeof(Kv)), kStepBytes = kTileStep * kRowBytes;
  static constexpr int kQueryBytes = kTileRows * kDim * 2;

  unsigned char* ring;     ///< [kTileWarps][kStages][keys, values][kTileStep][kDim]
  unsigned char* queries;  ///< [high, low][kTileRows][kDim] halves, of what the factors leave
  unsigned char* own;      ///< [key, value][kDim]: of the row, where the block appends it
  float* parts;            ///< [kTileWarps][used][kTileColumnsLd]; first [used][kDim] queries
  float* total;            ///< [used][kDim]: of the units so far
  float* factors;          ///< [kTileRows]: what makes a product a score in units of log 2
  Softmax* found;          ///< [kTileWarps][kTileRows]: of a unit
  Softmax* all;            ///< [2][kTileRows]: of the units so far, and of the last one
  float *keep, *take;      ///< [kTileWarps + 1][kTileRows]; take below 0: nothing was seen
  float* scales;           ///< int8: [kTileWarps][kStages][Scale][kTileStep]
  float* own_room;         ///< [key, value][kDim] as the product left them
  float* rope;             ///< [kDim]: the row's
  float* own_scales;       ///< int8: [2]

  FS_DEVICE AttendTile(unsigned char* from, int used) {
    ring = from;
    queries = ring + kTileWarps * kStages * 2 * kStepBytes;
    own = queries + 2 * kQueryBytes;
    parts = reinterpret_cast<float*>(own + 2 * kRowBytes);
    total = parts + used * kTileWarps * kTileColumnsLd;
    factors = total + used * kDim;
    found = reinterpret_cast<Softmax*>(factors + kTileRows);
    all = found + kTileWarps * kTileRows;
    keep = reinterpret_cast<float*>(all + 2 * kTileRows);
    take = keep + (kTileWarps + 1) * kTileRows;
    own_room = take + (kTileWarps + 1) * kTileRows;
    rope = own_room + 2 * kDim;
    scales = rope + kDim;
    own_scales = scales + (kScaled ? kTileWarps * kStages * kScales * kTileStep : 0);
  }

  static FS_DEVICE int place(int row, int piece) {
    return row * kRowBytes + (piece ^ (kPieces % 8 == 0 ? row & 7 : row >> 1 & 3)) * 16;
  }
  static FS_DEVICE int query_place(int row, int piece) {
    return row * kDim * 2 + (piece ^ (row & 7)) * 16;
  }
  /// Where a lane's piece of fragment `d` lies is that of fragment 0, whose piece is 0 or 1, with
  /// these bits of the address turned.
  static FS_DEVICE int turned(int first, int d) { return first ^ d * 32; }
  FS_DEVICE unsigned char* step_room(int stage) const {
    return ring + (threadIdx.x / 32 * kStages + stage) * 2 * kStepBytes;
  }
  FS_DEVICE float* step_scales(int stage) const {
    return scales + (threadIdx.x / 32 * kStages + stage) * kScales * kTileStep;
  }
  static FS_DEVICE int next_stage(int stage) { return stage + 1 == kStages ? 0 : stage + 1; }

  /// Starts the copies of a step; `slot`: of position lane % 16 of it. What has none becomes 0.
  FS_DEVICE void fetch(const TileWork<Kv>& work, int stage, uint32_t slot) const {
    static_assert(32 % kPieces == 0);
    constexpr int kRows = 32 / kPieces;  // at once: a lane's are kRows apart, and its piece is one
    const int lane = threadIdx.x & 31, piece = lane % kPieces;
    const bool mine = piece * kPer < work.dim;
    const Kv *const keys = work.keys + piece * kPer, *const values = work.values + piece * kPer;
    unsigned char* const to = step_room(stage);
    const int first = place(lane / kPieces, piece);
    FS_UNROLL
    for (int row = 0; row < kTileStep; row += kRows) {
      const uint32_t at = __shfl_sync(kWholeWarp, slot, row + lane / kPieces);
      const int bytes = mine && at != kNoSlot ? 16 : 0;
      const size_t from = size_t(at) * size_t(work.dim);
      const int there = (first ^ place(row, 0) % kRowBytes) + row * kRowBytes;
      copy_async(to + there, keys + from, bytes);
      copy_async(to + kStepBytes + there, values + from, bytes);
    }
  }
  /// Scales come by way of a register, from one step to the next: lanes below 16 keys', the others
  /// values'.
  FS_DEVICE float load_scale(const TileWork<Kv>& work, uint32_t slot) const {
    if (!kScaled || slot == kNoSlot) return 1;
    return ((threadIdx.x & 16) == 0 ? work.key_scales : work.value_scales)[slot];
  }
  /// A value's scale v is 2^exponent mantissa. The exponent is added to a score, so that the
  /// largest weight is close to 2^kWeightBits whatever the scales, and the mantissa is in the
  /// weight. A scale that is not finite spoils every row that sees it.
  FS_DEVICE void place_scale(int stage, int i, bool of_key, float scale) const {
    float* const to = step_scales(stage) + i;
    const uint32_t bits = float_bits(scale < kLeastScale ? kLeastScale : scale);
    const bool finite = (bits >> 23) < 254;  // a finite value's scale is below 2^122
    const int exponent = finite ? int(bits >> 23) - 127 : 0;
    to[of_key ? kKey : kExponent * kTileStep] = of_key ? scale : float(exponent);
    if (of_key) return;
    to[kMantissa * kTileStep] = bits_float(finite ? (bits & 0x7fffffu) | 0x3f800000u : 0x7fc00000u);
    to[kInverse * kTileStep] = bits_float(uint32_t(127 - exponent) << 23);
  }
  FS_DEVICE void place_scale(int stage, float scale) const {
    if constexpr (kScaled) place_scale(stage, threadIdx.x & 15, (threadIdx.x & 16) == 0, scale);
  }
  /// The row's own key and value join the others of their step. By the warp that has it.
  FS_DEVICE void place_own(int stage, int row) const {
    const int lane = threadIdx.x & 31;
    FS_NO_UNROLL
    for (int i = lane; i < 2 * kPieces; i += 32)
      *reinterpret_cast<uint4*>(step_room(stage) + i / kPieces * kStepBytes +
                                place(row, i % kPieces)) = reinterpret_cast<const uint4*>(own)[i];
    if (kScaled && lane < 2) place_scale(stage, row, lane == 0, own_scales[lane]);
  }
};

/// A query of `dim` floats into row `to` of the tile: halves and what they leave, of the query by a
/// power of two that makes its largest number almost as large as halves get. By a warp.
template <class Tile>
FS_DEVICE void place_query(const Tile& tile, const float* query, int dim, int to, float scale) {
  constexpr int kEach = Tile::kQueryBytes / kTileRows / 2 / 32;  // numbers of a lane
  const int lane = threadIdx.x & 31;
  float v[kEach];
  uint32_t top = 0;
  FS_UNROLL
  for (int k = 0; k < kEach; ++k) {
    v[k] = query && lane + k * 32 < dim ? query[lane + k * 32] : 0.0f;
    top = Max::of(top, float_bits(v[k]) & 0x7fffffffu);
  }
  if (query) top = warp_reduce<Max>(top) >> 23;
  const uint32_t exponent = top == 0 || top == 255 ? 127 + 14 : top < 15 ? 15 : top;
  const float by = bits_float((2 * 127 + 14 - exponent) << 23);
  FS_UNROLL
  for (int k = 0; k < kEach; ++k) {
    const int d = lane + k * 32;
    // Where a fragment of codes has number d: four neighbours are a lane's.
    const int place = Tile::kScaled ? d / 16 * 16 + (d & 2) * 4 + (d % 16 >> 2) * 2 + (d & 1) : d;
    const Float16 high = from_float<Float16>(v[k] * by);
    auto* const at = reinterpret_cast<Float16*>(tile.queries + Tile::query_place(to, place / 8));
    at[place % 8] = high;
    at[Tile::kQueryBytes / 2 + place % 8] = from_float<Float16>(v[k] * by - as_float(high));
  }
  if (lane == 0) tile.factors[to] = scale * kLog2E * bits_float((exponent - 14) << 23);
}

/// s [16, 16] = the tile's queries by a step's keys: from lane 4 g + t on rows g and g + 8, keys
/// 2 t, 2 t + 1 and 8 further.
template <class Kv, int kDim, int kStages>
FS_DEVICE void tile_scores(const AttendTile<Kv, kDim, kStages>& tile, const unsigned char* keys,
                           float (&s)[2][4]) {
  using Tile = AttendTile<Kv, kDim, kStages>;
  const int lane = threadIdx.x & 31;
  const int query = Tile::query_place(lane & 15, lane >> 4);
  float low[2][4] = {};
  const auto multiply = [&](int d, const uint32_t(&b)[4]) {  // b: k's halves, of keys 0.. and 8..
    uint32_t a[4];
    const unsigned char* const from = tile.queries + Tile::turned(query, d);
    load_matrix(a, from);
    mma(Float16{}, s[0], a, b[0], b[1]);
    mma(Float16{}, s[1], a, b[2], b[3]);
    load_matrix(a, from + Tile::kQueryBytes);
    mma(Float16{}, low[0], a, b[0], b[1]);
    mma(Float16{}, low[1], a, b[2], b[3]);
  };
  FS_UNROLL
  for (int n = 0; n < 2; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
  if constexpr (Tile::kScaled) {
    const int first = Tile::place(lane & 15, lane >> 4);
    FS_UNROLL
    for (int d = 0; d < kDim / 32; ++d) {
      uint32_t codes[4];
      load_matrix(codes, keys + Tile::turned(first, d));
      FS_UNROLL
      for (int i = 0; i < 2; ++i)
        multiply(2 * d + i, {halves_of<0, 1>(codes[2 * i]), halves_of<2, 3>(codes[2 * i]),
                             halves_of<0, 1>(codes[2 * i + 1]), halves_of<2, 3>(codes[2 * i + 1])});
    }
  } else {
    const int first = Tile::place((lane >> 4) * 8 + (lane & 7), lane >> 3 & 1);
    FS_UNROLL
    for (int d = 0; d < kDim / 16; ++d) {
      uint32_t b[4];
      load_matrix(b, keys + Tile::turned(first, d));
      multiply(d, b);
    }
  }
  FS_UNROLL
  for (int n = 0; n < 2; ++n) {
    FS_UNROLL
    for (int e = 0; e < 4; ++e) s[n][e] += low[n][e];
  }
}

/// acc [16, kDim] += weights [16, 16] by a step's values. Of halves acc[n] has columns as an mma
/// has, 8 n and on; of codes acc[2 i] the even ones and acc[2 i + 1] the odd ones of 16 i and on.
template <class Kv, int kDim, int kStages>
FS_DEVICE void add_step(const unsigned char* values, const uint32_t (&high)[4],
                        const uint32_t (&low)[4], float (&acc)[kDim / 8][4]) {
  using Tile = AttendTile<Kv, kDim, kStages>;
  const int lane = threadIdx.x & 31, first = Tile::place(lane & 15, lane >> 4);
  const auto add = [&](int n, const uint32_t(&b)[4]) {
    mma(Float16{}, acc[n], high, b[0], b[1]);
    mma(Float16{}, acc[n + 1], high, b[2], b[3]);
    mma(Float16{}, acc[n], low, b[0], b[1]);
    mma(Float16{}, acc[n + 1], low, b[2], b[3]);
  };
  if constexpr (Tile::kScaled) {
    FS_UNROLL
    for (int d = 0; d < kDim / 32; ++d) {
      uint32_t codes[4];
      load_matrix_transposed(codes, values + Tile::turned(first, d));
      FS_UNROLL
      for (int i = 0; i < 2; ++i)
        add(4 * d + 2 * i, {halves_of<0, 2>(codes[2 * i]), halves_of<0, 2>(codes[2 * i + 1]),
                            halves_of<1, 3>(codes[2 * i]), halves_of<1, 3>(codes[2 * i + 1])});
    }
  } else {
    FS_UNROLL
    for (int d = 0; d < kDim / 16; ++d) {
      uint32_t b[4];
      load_matrix_transposed(b, values + Tile::turned(first, d));
      add(2 * d, b);
    }
  }
}

FS_DEVICE bool is_spoilt(uint32_t half) { return (half & 0x7c00u) == 0x7c00u; }

/// Where some rows of a tile see what others do not: values that are not finite are added here, to
/// the rows that see them, and become 0 in the step's room, so that 0 times them reaches no other.
template <class Tile, int kDim, class Sees>
FS_DEVICE void add_spoilt(unsigned char* values, const uint32_t (&high)[4],
                          const uint32_t (&low)[4], const Sees& sees, float (&acc)[kDim / 8][4]) {
  const int lane = threadIdx.x & 31;
  auto* const words = reinterpret_cast<uint32_t*>(values);
  bool spoilt = false;
  FS_NO_UNROLL
  for (int i = lane; i < Tile::kStepBytes / 4; i += 32)
    spoilt = spoilt || is_spoilt(words[i]) || is_spoilt(words[i] >> 16);
  if (__ballot_sync(kWholeWarp, spoilt) == 0) return;
  FS_NO_UNROLL
  for (int key = 0; key < kTileStep; ++key) {
    float weight[2][2];
    FS_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int from = (lane & ~3) | key % 8 / 2, shift = key % 2 * 16;
      const uint32_t a = __shfl_sync(kWholeWarp, key < 8 ? high[i] : high[2 + i], from);
      const uint32_t b = __shfl_sync(kWholeWarp, key < 8 ? low[i] : low[2 + i], from);
      weight[i][0] = as_float(Float16{static_cast<uint16_t>(a >> shift)});
      weight[i][1] = as_float(Float16{static_cast<uint16_t>(b >> shift)});
    }
    FS_UNROLL
    for (int n = 0; n < kDim / 8; ++n) {
      const uint32_t two = words[(Tile::place(key, n) >> 2) + (lane & 3)];
      FS_UNROLL
      for (int e = 0; e < 4; ++e) {
        const uint32_t half = e % 2 == 0 ? two & 0xffffu : two >> 16;
        if (!is_spoilt(half) || !sees(e / 2, key)) continue;
        const float value = as_float(Float16{static_cast<uint16_t>(half)});
        acc[n][e] = fmaf(weight[e / 2][1], value, fmaf(weight[e / 2][0], value, acc[n][e]));
      }
    }
  }
  __syncwarp();
  FS_NO_UNROLL
  for (int i = lane; i < Tile::kStepBytes / 4; i += 32)
    words[i] &=
        (is_spoilt(words[i]) ? 0xffff0000u : ~0u) & (is_spoilt(words[i] >> 16) ? 0xffffu : ~0u);
  __syncwarp();
}

}  // namespace fastserve::gpu
