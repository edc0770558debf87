// Inference products of a few rows on tensor cores: weights are read once, and how fast they come
// is what counts.
//
// Every kernel here adds an element's terms in an order fixed by the weights' shape, so that a
// row's bits do not depend on how many rows share the batch.
#pragma once

#include "gpu/kernels/decode_rows.cuh"
#include "gpu/kernels/packed_weights.cuh"

namespace fastserve::gpu {

/// Rows whose activations each block of a product prepares for itself.
constexpr int kOwnRows = 4;

/// Where a block of decode_product has its activations: prepared by itself and kept in shared
/// memory, brought there as prepare_rows left them, or read from there for each unit.
enum class XPlace : uint8_t { kOwn, kHeld, kRead };

/// y = x W^T on tensor cores for up to 8 kTiles rows a block, weights in fragment order.
///
/// x:      kOwn: PrepareArguments' x, at most kOwnRows rows of it. Otherwise bfloat16 or int8 codes
///         [rows, x_ld], x_ld a multiple of kProductUnit.
/// Grid:   (any number of blocks that take turns with p.tiles tiles of 16 outputs, rows /
///         (8 kTiles) rounded up). Block: 32 * kProductSlices, a warp a slice of the inputs.
/// Shared: FewRows::shared() bytes. Each warp has a ring of units there that asynchronous copies
///         fill, so that some KiB a warp are always on their way: from before the kernels ahead of
///         this one have ended (weights are nobody's output), and on from tile to tile.
/// Bits:   as packed_weights.cuh says, and of activations as decode_rows.cuh does.
template <PackedFormat kFormat, int kGroup, int kTiles, XPlace kX>
struct FewRows {
  using Unit = PackedUnit<kFormat, kGroup>;
  static constexpr PackedFormat kPacked = kFormat;
  static constexpr int kGrouped = kGroup, kRowTiles = kTiles;
  static constexpr XPlace kPlace = kX;
  static constexpr int kThreads = 32 * kProductSlices;
  static constexpr int kStages = Unit::kBFloat ? 3 : 4;
  static constexpr int kLeastStages = 2;  ///< on cards with too little shared memory for that
  static constexpr int kStageBytes = Unit::kBytes + Unit::kScaleBytes;
  static constexpr int kRows = kX == XPlace::kOwn ? kOwnRows : 8 * kTiles;  ///< of a block
  static constexpr int kSums = kProductSlices * 16 * kRows;  ///< floats of a tile, kept twice
  static constexpr int kBlocks = kTiles > 1 ? 2 : 3;         ///< that a multiprocessor runs at once
  static constexpr int kUnitBytes = kProductUnit * Unit::kNumberBytes;
  /// Elements of a tile's sums that a thread finishes.
  static constexpr int kEach = (kRows * 16 + kThreads - 1) / kThreads;
  /// Of a row in shared memory, so that neighbouring rows' words lie in other banks.
  static __host__ FS_DEVICE int row_bytes(int units) { return units * kUnitBytes + 16; }
  static __host__ FS_DEVICE int ring(int stages) { return kProductSlices * stages * kStageBytes; }
  static size_t shared(int rows, int units, int stages) {
    const size_t fixed = size_t(ring(stages)) + 2 * kSums * sizeof(float);
    const size_t held = size_t(rows < kRows ? rows : kRows) * size_t(row_bytes(units)) +
                        size_t(units) * Unit::kXGroups * kRows * sizeof(float);
    if (kX == XPlace::kRead) return fixed;
    const size_t room = kX == XPlace::kOwn ? PrepareRoom::floats(rows) : 0;
    return fixed + held + room * sizeof(float);
  }
};

/// A block's activations in shared memory. A unit's words of four codes (two bfloat16) lie as lane
/// t of four reads them: words t, t + 4, t + 8 ... of the row next to each other.
template <class Few>
struct HeldRows {
  using Unit = typename Few::Unit;
  static constexpr int kWords = Few::kUnitBytes / 16;  ///< that a lane reads of a unit
  unsigned char* x;                                    ///< [rows][row_bytes]
  float* scales;                                       ///< [group][Few::kRows]
  int units;

  FS_DEVICE void put(int row, int unit, int word, uint32_t value) const {
    unsigned char* const to = x + row * Few::row_bytes(units) + unit * Few::kUnitBytes;
    *reinterpret_cast<uint32_t*>(to + (word % 4 * kWords + word / 4) * 4) = value;
  }
  FS_DEVICE float& scale(int row, int group) const { return scales[group * Few::kRows + row]; }
  /// Four values of a row by each lane of a warp, which make a unit.
  FS_DEVICE void quantise(int row, int unit, const Wide<4>& v) const {
    const int lane = threadIdx.x & 31;
    if constexpr (Unit::kBFloat) {
      put(row, unit, lane * 2, pack_two<BFloat16>(v.v[0], v.v[1]));
      put(row, unit, lane * 2 + 1, pack_two<BFloat16>(v.v[2], v.v[3]));
    } else {
      constexpr int kLanes = Few::kGrouped / 4;  // that share a scale
      float by;
      put(row, unit, lane, quantise_four(v, Few::kGrouped, by));
      if (lane % kLanes == 0) scale(row, unit * Unit::kXGroups + lane / kLanes) = by;
    }
  }
  /// As prepare_rows left them, which is without gaps. Several pieces of 16 bytes a lane are on
  /// their way at once.
  FS_DEVICE void bring(const DecodeProductArguments& p, int first) const {
    constexpr int kPieces = Few::kUnitBytes / 16, kAtOnce = 4;
    const int left = p.rows - first, rows = left < Few::kRows ? left : Few::kRows;
    const int pieces = rows * units * kPieces;
    const uint4* const from = reinterpret_cast<const uint4*>(
        static_cast<const unsigned char*>(p.x) + at(first, p.x_ld) * Unit::kNumberBytes);
    FS_NO_UNROLL
    for (int i = threadIdx.x; i < units * Unit::kXGroups * Few::kRows; i += Few::kThreads) {
      const int row = i % Few::kRows, group = i / Few::kRows;
      if (row < rows) scale(row, group) = p.x_scales[at(group, p.x_scale_ld, first + row)];
    }
    FS_NO_UNROLL
    for (int base = threadIdx.x; base < pieces; base += kAtOnce * Few::kThreads) {
      uint4 words[kAtOnce];
      FS_UNROLL
      for (int k = 0; k < kAtOnce; ++k)
        if (base + k * Few::kThreads < pieces) words[k] = from[base + k * Few::kThreads];
      FS_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = base + k * Few::kThreads, word = i % kPieces * 4, of = i / kPieces;
        if (i >= pieces) continue;
        const int row = of / units, unit = of - row * units;
        put(row, unit, word, words[k].x);
        put(row, unit, word + 1, words[k].y);
        put(row, unit, word + 2, words[k].z);
        put(row, unit, word + 3, words[k].w);
      }
    }
  }
  /// Words 4 i + t of a unit's, i = 4 run and on.
  FS_DEVICE uint4 load(int row, int unit, int t, int run) const {
    return *reinterpret_cast<const uint4*>(x + row * Few::row_bytes(units) +
                                           unit * Few::kUnitBytes + (t * kWords + run * 4) * 4);
  }
};

/// Starts the copies of a unit of weights and its scales; `index`: of all units. By a warp.
template <class Unit>
FS_DEVICE void fetch_unit(unsigned char* to, const void* weights, const void* scales,
                          uint32_t index) {
  const int own = (threadIdx.x & 31) * 16;
  unsigned char* const mine = to + own;
  const auto* const from =
      static_cast<const unsigned char*>(weights) + own + size_t(index) * Unit::kBytes;
  FS_UNROLL
  for (int i = 0; i < Unit::kBytes; i += 512) {
    if (i + 512 > Unit::kBytes && own + i >= Unit::kBytes) break;
    copy_async(mine + i, from + i, 16);
  }
  if (own < Unit::kScaleBytes)
    copy_async(mine + Unit::kBytes,
               static_cast<const unsigned char*>(scales) + own + size_t(index) * Unit::kScaleBytes,
               16);
}

/// A warp's ring of units in shared memory, from tile to tile without a halt.
template <class Few>
struct UnitRing {
  using Unit = typename Few::Unit;
  unsigned char* memory;
  int begin, end, stages;  ///< units of the slice
  int tile, unit, stage;   ///< to ask for next
  int at;                  ///< stage that is read next

  FS_DEVICE UnitRing(const DecodeProductArguments& p, unsigned char* shared) {
    const int warp = threadIdx.x / 32;
    begin = slice_begin(warp, p.units);
    end = slice_begin(warp + 1, p.units);
    stages = p.stages;
    memory = shared + warp * stages * Few::kStageBytes;
    tile = begin < end ? blockIdx.x : p.tiles;
    unit = begin;
    stage = at = 0;
    FS_NO_UNROLL
    for (int i = 0; i < stages - 1; ++i) fetch(p);
  }
  FS_DEVICE int after(int one) const { return one + 1 == stages ? 0 : one + 1; }
  FS_DEVICE void fetch(const DecodeProductArguments& p) {
    if (tile < p.tiles) {
      fetch_unit<Unit>(memory + stage * Few::kStageBytes, p.weights, p.weight_scales,
                       uint32_t(tile) * uint32_t(p.units) + uint32_t(unit));
      stage = after(stage);
      if (++unit == end) {
        unit = begin;
        tile += gridDim.x;
      }
    }
    copy_commit();
  }
  /// The next unit, when it is there; another one is asked for.
  FS_DEVICE const unsigned char* next(const DecodeProductArguments& p) {
    if (stages == Few::kStages)
      copy_wait<Few::kStages - 2>();
    else
      copy_wait<Few::kLeastStages - 2>();
    __syncwarp();  // what other lanes fetched is there, too, and the unit before is done with
    fetch(p);
    const unsigned char* const found = memory + at * Few::kStageBytes;
    at = after(at);
    return found;
  }
};

/// acc += a unit of weights by the block's rows.
template <class Few>
FS_DEVICE void multiply_unit(float (&acc)[Few::kRowTiles][4], const DecodeProductArguments& p,
                             const HeldRows<Few>& held, const unsigned char* stage, int unit,
                             const RowScales& own) {
  using Unit = typename Few::Unit;
  constexpr bool kRead = Few::kPlace == XPlace::kRead;
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int first = blockIdx.y * 8 * Few::kRowTiles;
  /// A row of the block that is there: in place of those past the end, any.
  const auto row_of = [&](int n) { return first + n * 8 + g < p.rows ? n * 8 + g : 0; };
  const auto x_of = [&](int n) {
    return static_cast<const unsigned char*>(p.x) +
           at(first + row_of(n), p.x_ld) * Unit::kNumberBytes + size_t(unit) * Few::kUnitBytes +
           t * 4;
  };
  if constexpr (Unit::kBFloat) {
    FS_UNROLL
    for (int s = 0; s < Unit::kWords; ++s) {
      const uint4 w = *reinterpret_cast<const uint4*>(stage + s * 512 + lane * 16);
      const uint32_t a[4] = {w.x, w.y, w.z, w.w};
      FS_UNROLL
      for (int n = 0; n < Few::kRowTiles; ++n) {
        if constexpr (kRead) {
          mma(BFloat16{}, acc[n], a, word_of(x_of(n), s * 32), word_of(x_of(n), s * 32 + 16));
        } else {
          const uint4 two = held.load(row_of(n), unit, t, s / 2);
          mma(BFloat16{}, acc[n], a, s & 1 ? two.z : two.x, s & 1 ? two.w : two.y);
        }
      }
    }
  } else {
    IntegerFragments<Few::kPacked, Few::kGrouped> w;
    w.load(stage, lane);
    FS_UNROLL
    for (int n = 0; n < Few::kRowTiles; ++n) {
      uint32_t b[2][4];
      FS_UNROLL
      for (int i = 0; i < 2; ++i) {
        if constexpr (kRead) {
          FS_UNROLL
          for (int k = 0; k < 4; ++k) b[i][k] = word_of(x_of(n), (i * 4 + k) * 16);
        } else {
          const uint4 four = held.load(row_of(n), unit, t, i);
          b[i][0] = four.x, b[i][1] = four.y, b[i][2] = four.z, b[i][3] = four.w;
        }
      }
      FS_UNROLL
      for (int group = 0; group < Unit::kXGroups; ++group) {
        int products[4] = {};
        w.multiply(products, group, b);
        const int of = unit * Unit::kXGroups + group, row = n * 8 + t * 2;
        const float* const by =
            kRead ? p.x_scales + at(of, p.x_scale_ld, first + row) : &held.scale(row, of);
        scale_in(acc[n], products, scales_of<Unit>(own, stage + Unit::kBytes, group, g),
                 first + row < p.rows ? by[0] : 0.0f, first + row + 1 < p.rows ? by[1] : 0.0f);
      }
    }
  }
}

/// The slices' sums meet in `sums`, [slice][row][output], and become outputs of the tile. All
/// threads call; `sums` may be written again after the next such call for other memory.
template <class Few>
FS_DEVICE void finish_tile(const DecodeProductArguments& p, int tile,
                           const float (&acc)[Few::kRowTiles][4],
                           const float (&residual)[Few::kEach], float* sums) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, g = lane >> 2, t = lane & 3;
  FS_UNROLL
  for (int n = 0; n < Few::kRowTiles; ++n) {
    FS_UNROLL
    for (int e = 0; e < 4; ++e) {
      const int row = n * 8 + t * 2 + (e & 1);
      if (row < Few::kRows) sums[(warp * Few::kRows + row) * 16 + g + (e >> 1) * 8] = acc[n][e];
    }
  }
  __syncthreads();
  FS_UNROLL
  for (int i = 0; i < Few::kEach; ++i) {
    const int e = threadIdx.x + i * Few::kThreads, o = e % 16;
    const int row = blockIdx.y * 8 * Few::kRowTiles + e / 16;
    if (e >= Few::kRows * 16 || row >= p.rows) continue;
    const auto sum_of = [&](int at_sum) {
      float sum = 0;
      FS_UNROLL
      for (int k = 0; k < kProductSlices; ++k) sum += sums[k * Few::kRows * 16 + at_sum];
      return sum;
    };
    if (p.epilogue != DecodeEpilogue::kSwiGlu)
      finish_decode(p, row, tile * kProductOutputs + o, sum_of(e), residual[i]);
    else if (o < 8)  // eight gates, then their ups
      finish_decode_gated(p, row, tile * 8 + o, sum_of(e), sum_of(e + 8));
  }
}

/// The block's room for activations and sums, behind its ring.
template <class Few>
struct ProductRoom {
  using Unit = typename Few::Unit;
  float* sums;  ///< twice Few::kSums
  HeldRows<Few> held;
  FS_DEVICE ProductRoom(unsigned char* from, int units)
      : sums(reinterpret_cast<float*>(from)),
        held{reinterpret_cast<unsigned char*>(sums + 2 * Few::kSums +
                                              units * Unit::kXGroups * Few::kRows),
             sums + 2 * Few::kSums, units} {}
  template <class Wait>
  FS_DEVICE void prepare(const PrepareArguments& p, int rows, const Wait& wait) const {
    float* const room = reinterpret_cast<float*>(held.x + rows * Few::row_bytes(held.units));
    prepare_block<true>(p, 0, rows, room, wait,
                        [&](int row, int unit, const Wide<4>& v) { held.quantise(row, unit, v); });
  }
};

/// Row scales of a tile's outputs for this lane, of the first tile where it is not there.
template <class Few>
FS_DEVICE RowScales tile_scales(const DecodeProductArguments& p, int tile) {
  return row_scales<typename Few::Unit>(
      p, (tile < p.tiles ? tile : 0) * kProductOutputs + (int(threadIdx.x & 31) >> 2));
}

/// This block's tiles, with what `ring` brings; `scales`: tile_scales() of its first.
template <class Few, class Ring>
FS_DEVICE void multiply_tiles(const DecodeProductArguments& p, const ProductRoom<Few>& room,
                              Ring& ring, RowScales scales) {
  const int warp = threadIdx.x / 32, first = blockIdx.y * 8 * Few::kRowTiles;
  const int begin = slice_begin(warp, p.units), end = slice_begin(warp + 1, p.units);
  float *sums = room.sums, *other_sums = sums + Few::kSums;
  for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    float residual[Few::kEach];  // what the epilogue adds to: asked for early
    FS_UNROLL
    for (int i = 0; i < Few::kEach; ++i) {
      const int e = threadIdx.x + i * Few::kThreads;
      residual[i] = e < Few::kRows * 16
                        ? decode_residual(p, first + e / 16, tile * kProductOutputs + e % 16)
                        : 0.0f;
    }
    [[maybe_unused]] const RowScales own = scales;
    scales = tile_scales<Few>(p, tile + gridDim.x);
    float acc[Few::kRowTiles][4] = {};
    FS_NO_UNROLL
    for (int unit = begin; unit < end; ++unit) {
      const unsigned char* const stage = ring.next(p);
      multiply_unit<Few>(acc, p, room.held, stage, unit, own);
    }
    finish_tile<Few>(p, tile, acc, residual, sums);
    float* const read = sums;
    sums = other_sums;
    other_sums = read;
  }
}

template <class Few>
__global__ void __launch_bounds__(Few::kThreads, Few::kBlocks)
    decode_product(DecodeProductArguments p, PrepareArguments prepare) {
  FS_SHARED(unsigned char, memory);
  const ProductRoom<Few> room(memory + Few::ring(p.stages), p.units);
  UnitRing<Few> ring(p, memory);
  const RowScales scales = tile_scales<Few>(p, blockIdx.x);
  let_next_begin();
  if constexpr (Few::kPlace == XPlace::kOwn) {
    room.prepare(prepare, p.rows, ChainWait{});
  } else {
    wait_for_previous();
    if constexpr (Few::kPlace == XPlace::kHeld)
      room.held.bring(p, int(blockIdx.y) * 8 * Few::kRowTiles);
  }
  __syncthreads();
  multiply_tiles(p, room, ring, scales);
}

}  // namespace fastserve::gpu
