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
template <class Many>
FS_DEVICE void fetch_stage(const DecodeProductArguments& p, int index, int stages, int tiles,
                           unsigned char* stage) {
  using Unit = typename Many::Unit;
  const int first_tile = blockIdx.y * Many::kOutputTiles, first = blockIdx.x * Many::kRows;
  const auto* const weights = static_cast<const unsigned char*>(p.weights);
  const auto tile_at = [&](int i) {
    const int tile = first_tile + i < tiles ? first_tile + i : tiles - 1;
    return size_t(tile) * size_t(stages) + size_t(index);
  };
  for (int i = threadIdx.x * 16; i < Many::kWeights; i += Many::kThreads * 16)
    copy_async(stage + i,
               weights + tile_at(i / Many::kTileBytes) * Many::kTileBytes + i % Many::kTileBytes,
               16);
  stage += Many::kWeights;
  const auto* const x = static_cast<const unsigned char*>(p.x);
  for (int i = threadIdx.x; i < Many::kRows * 8; i += Many::kThreads) {
    const int row = i / 8, chunk = i % 8;
    const bool there = first + row < p.rows;
    const size_t from = at(there ? first + row : 0, p.x_ld) * Unit::kNumberBytes;
    copy_async(stage + row * 128 + (chunk ^ (row & 7)) * 16,  // eight rows, eight columns of banks
               x + from + size_t(index) * 128 + chunk * 16, there ? 16 : 0);
  }
  stage += Many::kX;
  if constexpr (Many::kScales > 0) {
    const auto* const scales = static_cast<const unsigned char*>(p.weight_scales);
    for (int i = threadIdx.x * 16; i < Many::kScales; i += Many::kThreads * 16)
      copy_async(
          stage + i,
          scales + tile_at(i / Unit::kScaleBytes) * Unit::kScaleBytes + i % Unit::kScaleBytes, 16);
  }
  stage += Many::kScales;
  for (int i = threadIdx.x; i < Unit::kXGroups * Many::kRows / 4; i += Many::kThreads) {
    const int group = i / (Many::kRows / 4), row = i % (Many::kRows / 4) * 4;
    const int left = p.rows - first - row, count = left < 0 ? 0 : left < 4 ? left : 4;
    const size_t from =
        at(index * Unit::kXGroups + group, p.x_scale_ld, count > 0 ? first + row : 0);
    copy_async(stage + i * 16, p.x_scales + from, count * 4);
  }
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
