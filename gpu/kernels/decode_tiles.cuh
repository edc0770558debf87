// Inference products of many rows (a prompt, a large batch): tiles in shared memory, each weight
// read from there by two warps and each activation by four.
#pragma once

#include "gpu/kernels/packed_weights.cuh"

namespace fastserve::gpu {

/// The block's tile: 128 outputs by 16 kRowTiles rows, four warps along the outputs by two along
/// the rows. Inputs go through a ring of stages of 128 bytes a row: a unit of integers, half a unit
/// of bfloat16.
template <PackedFormat kFormat, int kGroup, int kRowTiles>
struct ManyRows {
  using Unit = PackedUnit<kFormat, kGroup>;
  static constexpr int kThreads = 256, kStages = 4;
  static constexpr int kOutputTiles = 8;  ///< of 16
  static constexpr int kRows = 16 * kRowTiles;
  static constexpr int kStagesPerUnit = Unit::kBFloat ? 2 : 1;
  static constexpr int kTileBytes = Unit::kBytes / kStagesPerUnit;  ///< of one tile's weights
  static constexpr int kWeights = kOutputTiles * kTileBytes, kX = kRows * 128;
  static constexpr int kScales = kOutputTiles * Unit::kScaleBytes;
  static constexpr int kXScales = Unit::kXGroups * kRows * int(sizeof(float));
  static constexpr int kStageBytes = kWeights + kX + kScales + kXScales;
  static constexpr int kShared = kStages * kStageBytes;
};

/// Starts the copies of one stage. Rows past the end become zeros, and past the last tile of
/// outputs that one comes again: zeros are no places for a sparse product. Neither is stored.
///
/// Instructions here are as many as those that multiply: where a thread's pieces lie is known to
/// the compiler but for one number each.
template <class Many>
FS_DEVICE void fetch_stage(const DecodeProductArguments& p, int index, int stages, int tiles,
                           unsigned char* stage) {
  using Unit = typename Many::Unit;
  constexpr int kAtOnce = Many::kThreads * 16;  // bytes
  const int thread = threadIdx.x;
  const int first_tile = blockIdx.y * Many::kOutputTiles, first = blockIdx.x * Many::kRows;
  const auto tile_at = [&](int i) {
    const int tile = first_tile + i < tiles ? first_tile + i : tiles - 1;
    return uint32_t(tile) * uint32_t(stages) + uint32_t(index);
  };
  const auto* const weights = static_cast<const unsigned char*>(p.weights);
  constexpr bool kWhole = kAtOnce % Many::kTileBytes == 0;  // then all its pieces lie alike
  FS_UNROLL
  for (int done = 0; done < Many::kWeights; done += kAtOnce) {
    const int i = done + thread * 16, from = kWhole ? thread * 16 : i;
    if (done + kAtOnce > Many::kWeights && i >= Many::kWeights) break;
    const int tile = from / Many::kTileBytes + (kWhole ? done / Many::kTileBytes : 0);
    copy_async(stage + i,
               weights + from % Many::kTileBytes + size_t(tile_at(tile)) * Many::kTileBytes, 16);
  }
  stage += Many::kWeights;
  const auto* const x = static_cast<const unsigned char*>(p.x) + index * 128 + thread % 8 * 16;
  unsigned char* const to =  // eight rows, eight columns of banks
      stage + thread / 8 * 128 + (thread % 8 ^ (thread / 8 & 7)) * 16;
  static_assert(Many::kX % kAtOnce == 0 && kAtOnce / 128 % 8 == 0);
  FS_UNROLL
  for (int done = 0; done < Many::kX; done += kAtOnce) {
    const int row = first + done / 128 + thread / 8;
    const bool there = row < p.rows;
    copy_async(
        to + done,
        x + size_t(uint32_t(there ? row : 0)) * size_t(uint32_t(p.x_ld * Unit::kNumberBytes)),
        there ? 16 : 0);
  }
  stage += Many::kX;
  static_assert(Many::kScales <= kAtOnce && Unit::kXGroups * Many::kRows / 4 <= Many::kThreads);
  if constexpr (Many::kScales > 0) {
    const int i = thread * 16;
    if (i < Many::kScales)
      copy_async(stage + i,
                 static_cast<const unsigned char*>(p.weight_scales) +
                     size_t(tile_at(i / Unit::kScaleBytes)) * Unit::kScaleBytes +
                     i % Unit::kScaleBytes,
                 16);
  }
  stage += Many::kScales;
  if (thread >= Unit::kXGroups * Many::kRows / 4) return;
  const int group = thread / (Many::kRows / 4), row = thread % (Many::kRows / 4) * 4;
  const int left = p.rows - first - row, count = left < 0 ? 0 : left < 4 ? left : 4;
  const size_t from = at(index * Unit::kXGroups + group, p.x_scale_ld, count > 0 ? first + row : 0);
  copy_async(stage + thread * 16, p.x_scales + from, count * 4);
}

/// acc += a stage of a warp's 32 outputs by 8 kRowTiles rows.
template <PackedFormat kFormat, int kGroup, int kRowTiles>
FS_DEVICE void multiply_stage(float (&acc)[2][kRowTiles][4], const unsigned char* stage,
                              const RowScales (&own)[2]) {
  using Many = ManyRows<kFormat, kGroup, kRowTiles>;
  using Unit = PackedUnit<kFormat, kGroup>;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, g = lane >> 2, t = lane & 3;
  const int tile = warp % 4 * 2, rows = warp / 4 * 8 * kRowTiles;
  const unsigned char* const x = stage + Many::kWeights;
  const unsigned char* const scales = x + Many::kX + tile * Unit::kScaleBytes;
  const auto* const x_scales =
      reinterpret_cast<const float*>(x + Many::kX + Many::kScales) + rows + t * 2;
  IntegerFragments<kFormat, kGroup> w[2];  // of bfloat16, too: the words as they are
  FS_UNROLL
  for (int m = 0; m < 2; ++m) w[m].load(stage + (tile + m) * Many::kTileBytes, lane);
  FS_UNROLL
  for (int n = 0; n < kRowTiles; ++n) {
    uint32_t b[2][4];  // four steps, two registers each
    const int row = rows + n * 8 + (lane & 7);
    FS_UNROLL
    for (int half = 0; half < 2; ++half)
      load_matrix(b[half], x + row * 128 + ((half * 4 + lane / 8) ^ (row & 7)) * 16);
    FS_UNROLL
    for (int m = 0; m < 2; ++m) {
      if constexpr (Unit::kBFloat) {
        FS_UNROLL
        for (int s = 0; s < 4; ++s)
          mma(BFloat16{}, acc[m][n], w[m].a[s], b[s / 2][s % 2 * 2], b[s / 2][s % 2 * 2 + 1]);
      } else {
        FS_UNROLL
        for (int group = 0; group < Unit::kXGroups; ++group) {
          int sums[4] = {};
          w[m].multiply(sums, group, b);
          const float* const by = x_scales + group * Many::kRows + n * 8;
          scale_in(acc[m][n], sums,
                   scales_of<Unit>(own[m], scales + m * Unit::kScaleBytes, group, g), by[0], by[1]);
        }
      }
    }
  }
}

/// y = x W^T on tensor cores for many rows; arguments and bits as decode_product's.
///
/// Grid: (rows / ManyRows::kRows, outputs / 128), rounded up: blocks that share weights are
/// neighbours. Block: ManyRows::kThreads. Shared: ManyRows::kShared bytes.
template <PackedFormat kFormat, int kGroup, int kRowTiles>
__global__ void __launch_bounds__(256) decode_tiles(DecodeProductArguments p) {
  using Many = ManyRows<kFormat, kGroup, kRowTiles>;
  FS_SHARED(unsigned char, memory);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, g = lane >> 2, t = lane & 3;
  const int units = p.units, tiles = p.tiles, stages = units * Many::kStagesPerUnit;
  const int first_tile = blockIdx.y * Many::kOutputTiles + warp % 4 * 2;
  const auto fetch = [&](int index) {
    if (index < stages)
      fetch_stage<Many>(p, index, stages, tiles,
                        memory + index % Many::kStages * Many::kStageBytes);
    copy_commit();
  };
  RowScales own[2] = {};
  FS_UNROLL
  for (int m = 0; m < 2; ++m)
    if (first_tile + m < tiles)
      own[m] = row_scales<typename Many::Unit>(p, (first_tile + m) * 16 + g);
  let_next_begin();
  wait_for_previous();
  float total[2][kRowTiles][4] = {}, acc[2][kRowTiles][4] = {};
  for (int i = 0; i < Many::kStages - 1; ++i) fetch(i);
  int slice = 1, slice_end = slice_begin(1, units) * Many::kStagesPerUnit;
  for (int index = 0; index < stages; ++index) {
    copy_wait<Many::kStages - 2>();
    __syncthreads();  // the stage is there for all, and all are done with the one before it
    fetch(index + Many::kStages - 1);
    while (index == slice_end)
      slice_end = slice_begin(++slice, units) * Many::kStagesPerUnit;  // an empty slice
    multiply_stage<kFormat, kGroup, kRowTiles>(
        acc, memory + index % Many::kStages * Many::kStageBytes, own);
    if (index + 1 != slice_end) continue;
    FS_UNROLL
    for (int m = 0; m < 2; ++m) {
      FS_UNROLL
      for (int n = 0; n < kRowTiles; ++n) {
        FS_UNROLL
        for (int e = 0; e < 4; ++e) {
          total[m][n][e] += acc[m][n][e];
          acc[m][n][e] = 0;
        }
      }
    }
  }
  const bool gated = p.epilogue == DecodeEpilogue::kSwiGlu;
  const int first = blockIdx.x * Many::kRows + warp / 4 * 8 * kRowTiles + t * 2;
  FS_UNROLL
  for (int m = 0; m < 2; ++m) {
    FS_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      FS_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int row = first + n * 8 + e;
        const float low = total[m][n][e], high = total[m][n][e + 2];
        if (gated) {  // eight gates, then their ups
          finish_decode_gated(p, row, (first_tile + m) * 8 + g, low, high);
        } else {
          finish_decode(p, row, (first_tile + m) * 16 + g, low);
          finish_decode(p, row, (first_tile + m) * 16 + g + 8, high);
        }
      }
    }
  }
}

}  // namespace fastserve::gpu
