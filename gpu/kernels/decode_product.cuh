// Inference products of a few rows: weights are read once, and how fast they come is what counts.
//
// Every kernel here adds an element's terms in an order fixed by the weights' shape, so that a
// row's bits do not depend on how many rows share the batch.
#pragma once

#include "gpu/kernels/decode_rows.cuh"
#include "gpu/kernels/packed_weights.cuh"

namespace fastserve::gpu {

constexpr int kVectorWarps = 8, kVectorRows = 4;

/// y = x W^T for weights [out, in] of float or half and x of float: multiply-adds.
///
/// Grid:  (outputs or neurons / kVectorWarps, rows / kVectorRows), rounded up.
/// Block: 32 * kVectorWarps, a warp an output (a gate and its up).
/// Needs: kWide = 4: in and x_ld multiples of 4, x on 16 bytes.
/// Bits:  lane l takes kWide inputs of every 32 kWide; then the lanes by halves.
template <class W, int kWide>
__global__ void decode_vector_product(DecodeProductArguments p) {
  let_next_begin();
  wait_for_previous();
  const int lane = threadIdx.x & 31, first = blockIdx.y * kVectorRows;
  const bool gated = p.epilogue == DecodeEpilogue::kSwiGlu;
  const int outputs = gated ? p.out / 2 : p.out;
  const int o = blockIdx.x * kVectorWarps + threadIdx.x / 32;
  if (o >= outputs) return;
  const W* const weights = static_cast<const W*>(p.weights);
  const float* const x = static_cast<const float*>(p.x);
  float sums[2][kVectorRows] = {};
  for (int part = 0; part < (gated ? 2 : 1); ++part) {
    const W* const w = weights + at(part * outputs + o, p.in);
    for (int c = lane * kWide; c < p.in; c += 32 * kWide) {
      const Wide<kWide> weight = load_wide<kWide>(w + c);
      FS_UNROLL
      for (int r = 0; r < kVectorRows; ++r) {
        if (first + r >= p.rows) continue;
        const Wide<kWide> in = load_wide<kWide>(x + at(first + r, p.x_ld, c));
        FS_UNROLL
        for (int i = 0; i < kWide; ++i) sums[part][r] = fmaf(weight.v[i], in.v[i], sums[part][r]);
      }
    }
    FS_UNROLL
    for (int r = 0; r < kVectorRows; ++r) sums[part][r] = warp_reduce<Add>(sums[part][r]);
  }
  if (lane >= kVectorRows) return;
  float gate = 0, up = 0;  // of row `lane`, without indexing registers by it
  FS_UNROLL
  for (int r = 0; r < kVectorRows; ++r)
    if (r == lane) {
      gate = sums[0][r];
      up = sums[1][r];
    }
  if (gated)
    finish_decode_gated(p, first + lane, o, gate, up);
  else
    finish_decode(p, first + lane, o, gate);
}

/// Rows whose activations each block of a product prepares for itself.
constexpr int kOwnRows = 4;

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
template <PackedFormat kFormat, int kGroup, int kTiles, bool kOwn>
struct FewRows {
  using Unit = PackedUnit<kFormat, kGroup>;
  static constexpr int kStages = Unit::kBFloat ? 3 : 4;
  static constexpr int kLeastStages = 2;  ///< on cards with too little shared memory for that
  static constexpr int kStageBytes = Unit::kBytes + Unit::kScaleBytes;
  static constexpr int kRows = kOwn ? kOwnRows : 8 * kTiles;  ///< whose sums are kept
  static constexpr int kSums = kProductSlices * 16 * kRows;   ///< floats of a tile, kept twice
  static constexpr int kBlocks = kTiles > 1 ? 2 : 3;  ///< that a multiprocessor runs at once
  static constexpr int kUnitBytes = kProductUnit * Unit::kNumberBytes;
  /// Of an own row, so that neighbouring rows' words lie in other banks.
  static FS_DEVICE int row_bytes(int units) { return units * kUnitBytes + 16; }
  static __host__ FS_DEVICE int ring(int stages) { return kProductSlices * stages * kStageBytes; }
  static size_t shared(int rows, int units, int stages) {
    const size_t x = size_t(rows) * (size_t(units) * kUnitBytes + 16) +
                     size_t(units) * Unit::kXGroups * kOwnRows * sizeof(float) +
                     PrepareRoom::floats(rows, units) * sizeof(float);
    return size_t(ring(stages)) + 2 * kSums * sizeof(float) + (kOwn ? x : 0);
  }
};

/// A block's activations in shared memory. A unit's words of four codes (two bfloat16) lie as lane
/// t of four reads them: words t, t + 4, t + 8 ... of the row next to each other.
template <class Few>
struct OwnRows {
  using Unit = typename Few::Unit;
  static constexpr int kWords = Few::kUnitBytes / 16;  ///< that a lane reads of a unit
  unsigned char* x;                                    ///< [rows][row_bytes]
  float* scales;                                       ///< [group][kOwnRows]

  FS_DEVICE void store(int row, int units, int unit, int lane, const Wide<4>& v, int group) const {
    unsigned char* const to = x + row * Few::row_bytes(units) + unit * Few::kUnitBytes;
    const auto put = [&](int word, uint32_t value) {
      *reinterpret_cast<uint32_t*>(to + (word % 4 * kWords + word / 4) * 4) = value;
    };
    if constexpr (Unit::kBFloat) {
      put(lane * 2, pack_two<BFloat16>(v.v[0], v.v[1]));
      put(lane * 2 + 1, pack_two<BFloat16>(v.v[2], v.v[3]));
    } else {
      float scale;
      put(lane, quantise_four(v, group, scale));
      if (lane % (group / 4) == 0)
        scales[(unit * Unit::kXGroups + lane / (group / 4)) * kOwnRows + row] = scale;
    }
  }
  /// Words 4 i + t of a unit's, i = 4 run and on.
  FS_DEVICE uint4 load(int row, int units, int unit, int t, int run) const {
    return *reinterpret_cast<const uint4*>(x + row * Few::row_bytes(units) +
                                           unit * Few::kUnitBytes + (t * kWords + run * 4) * 4);
  }
};

template <PackedFormat kFormat, int kGroup, int kTiles, bool kOwn>
__global__ void __launch_bounds__(32 * kProductSlices,
                                  FewRows<kFormat, kGroup, kTiles, kOwn>::kBlocks)
    decode_product(DecodeProductArguments p, PrepareArguments prepare) {
  using Unit = PackedUnit<kFormat, kGroup>;
  using Few = FewRows<kFormat, kGroup, kTiles, kOwn>;
  FS_SHARED(unsigned char, memory);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, g = lane >> 2, t = lane & 3;
  const int first = blockIdx.y * 8 * kTiles, units = p.units, step = gridDim.x, stages = p.stages;
  const int begin = slice_begin(warp, units), end = slice_begin(warp + 1, units);
  unsigned char* const ring = memory + warp * stages * Few::kStageBytes;
  float* sums = reinterpret_cast<float*>(memory + Few::ring(stages));
  float* other_sums = sums + Few::kSums;
  OwnRows<Few> own{};
  if constexpr (kOwn) {
    own.scales = other_sums + Few::kSums;
    own.x = reinterpret_cast<unsigned char*>(own.scales + units * Unit::kXGroups * kOwnRows);
  }
  // The next unit to ask for: from tile to tile without a halt.
  int next_tile = begin < end ? blockIdx.x : p.tiles, next_unit = begin, next_stage = 0;
  const auto fetch = [&] {
    if (next_tile < p.tiles) {
      unsigned char* const stage = ring + next_stage * Few::kStageBytes;
      const size_t unit = size_t(next_tile) * size_t(units) + size_t(next_unit);
      const auto* const weights =
          static_cast<const unsigned char*>(p.weights) + unit * Unit::kBytes;
      FS_UNROLL
      for (int i = lane * 16; i < Unit::kBytes; i += 512) copy_async(stage + i, weights + i, 16);
      if (lane * 16 < Unit::kScaleBytes)
        copy_async(stage + Unit::kBytes + lane * 16,
                   static_cast<const unsigned char*>(p.weight_scales) + unit * Unit::kScaleBytes +
                       lane * 16,
                   16);
      if (++next_unit == end) {
        next_unit = begin;
        next_tile += step;
      }
      next_stage = next_stage + 1 == stages ? 0 : next_stage + 1;
    }
    copy_commit();
  };
  const auto scales_at = [&](int tile) {
    return row_scales<Unit>(p, (tile < p.tiles ? tile : 0) * kProductOutputs + g);
  };
  for (int i = 0; i < stages - 1; ++i) fetch();
  [[maybe_unused]] RowScales next_scales = scales_at(blockIdx.x);
  let_next_begin();
  if constexpr (kOwn) {
    float* const room = reinterpret_cast<float*>(own.x + p.rows * Few::row_bytes(units));
    prepare_block(prepare, 0, p.rows, room, [&](int row, int unit, const Wide<4>& v) {
      own.store(row, units, unit, lane, v, prepare.group);
    });
    __syncthreads();
  } else {
    wait_for_previous();
  }
  const auto x_row = [&](int n) {
    const int row = first + n * 8 + g < p.rows ? first + n * 8 + g : first;
    return static_cast<const unsigned char*>(p.x) + at(row, p.x_ld) * Unit::kNumberBytes + t * 4;
  };
  const int own_row = g < p.rows ? g : 0;
  int stage_at = 0;
  for (int tile = blockIdx.x; tile < p.tiles; tile += step) {
    constexpr int kEach = (Few::kRows * 16 + 32 * kProductSlices - 1) / (32 * kProductSlices);
    float before[kEach];  // what the epilogue adds to: asked for early
    FS_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int e = threadIdx.x + i * 32 * kProductSlices;
      before[i] = e < Few::kRows * 16
                      ? decode_residual(p, first + e / 16, tile * kProductOutputs + e % 16)
                      : 0.0f;
    }
    [[maybe_unused]] const RowScales row_scale = next_scales;
    next_scales = scales_at(tile + step);
    float acc[kTiles][4] = {};
    for (int unit = begin; unit < end; ++unit) {
      if (stages == Few::kStages)
        copy_wait<Few::kStages - 2>();
      else
        copy_wait<Few::kLeastStages - 2>();
      __syncwarp();  // what other lanes fetched is there, too, and the unit before is done with
      fetch();
      const unsigned char* const stage = ring + stage_at * Few::kStageBytes;
      stage_at = stage_at + 1 == stages ? 0 : stage_at + 1;
      if constexpr (Unit::kBFloat) {
        FS_UNROLL
        for (int s = 0; s < Unit::kWords; ++s) {
          const uint4 w = *reinterpret_cast<const uint4*>(stage + s * 512 + lane * 16);
          const uint32_t a[4] = {w.x, w.y, w.z, w.w};
          if constexpr (kOwn) {
            const uint4 two = own.load(own_row, units, unit, t, s / 2);
            mma(BFloat16{}, acc[0], a, s & 1 ? two.z : two.x, s & 1 ? two.w : two.y);
          } else {
            FS_UNROLL
            for (int n = 0; n < kTiles; ++n) {
              const unsigned char* const x = x_row(n) + size_t(unit) * kProductUnit * 2 + s * 32;
              mma(BFloat16{}, acc[n], a, word_of(x, 0), word_of(x, 16));
            }
          }
        }
      } else {
        IntegerFragments<kFormat, kGroup> w;
        w.load(stage, lane);
        FS_UNROLL
        for (int n = 0; n < kTiles; ++n) {
          const int row = first + n * 8 + t * 2;
          uint32_t b[2][4];
          if constexpr (kOwn) {
            FS_UNROLL
            for (int i = 0; i < 2; ++i) {
              const uint4 four = own.load(own_row, units, unit, t, i);
              b[i][0] = four.x, b[i][1] = four.y, b[i][2] = four.z, b[i][3] = four.w;
            }
          } else {
            const unsigned char* const x = x_row(n) + size_t(unit) * kProductUnit;
            FS_UNROLL
            for (int i = 0; i < 8; ++i) b[i / 4][i % 4] = word_of(x, i * 16);
          }
          FS_UNROLL
          for (int group = 0; group < Unit::kXGroups; ++group) {
            int products[4] = {};
            w.multiply(products, group, b);
            const int of = unit * Unit::kXGroups + group;
            const float* const by =
                kOwn ? own.scales + of * kOwnRows + row : p.x_scales + at(of, p.x_scale_ld, row);
            scale_in(acc[n], products, scales_of<Unit>(row_scale, stage + Unit::kBytes, group, g),
                     row < p.rows ? by[0] : 0.0f, row + 1 < p.rows ? by[1] : 0.0f);
          }
        }
      }
    }
    // [slice][row][output]; the other half is still read for the tile before, until all are here.
    FS_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      FS_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int row = n * 8 + t * 2 + (e & 1);
        if (row < Few::kRows) sums[(warp * Few::kRows + row) * 16 + g + (e >> 1) * 8] = acc[n][e];
      }
    }
    __syncthreads();
    const bool gated = p.epilogue == DecodeEpilogue::kSwiGlu;
    FS_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int e = threadIdx.x + i * 32 * kProductSlices, o = e % 16, row = first + e / 16;
      if (e >= Few::kRows * 16 || row >= p.rows) continue;
      const auto sum_of = [&](int at_sum) {
        float sum = 0;
        FS_UNROLL
        for (int k = 0; k < kProductSlices; ++k) sum += sums[k * Few::kRows * 16 + at_sum];
        return sum;
      };
      if (!gated)
        finish_decode(p, row, tile * kProductOutputs + o, sum_of(e), before[i]);
      else if (o < 8)  // eight gates, then their ups
        finish_decode_gated(p, row, tile * 8 + o, sum_of(e), sum_of(e + 8));
    }
    float* const read = sums;
    sums = other_sums;
    other_sums = read;
  }
}

}  // namespace fastserve::gpu
