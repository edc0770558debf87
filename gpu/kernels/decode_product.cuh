// Inference products of a few rows: weights are read once, and how fast they come is what counts.
//
// Every kernel here adds an element's terms in an order fixed by the weights' shape, so that a
// row's bits do not depend on how many rows share the batch.
#pragma once

#include "gpu/kernels/packed_weights.cuh"
#include "gpu/kernels/reduce.cuh"
#include "gpu/kernels/wide.cuh"

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

/// y = x W^T on tensor cores for up to 8 kTiles rows a block, weights in fragment order.
///
/// x:      bfloat16 or int8 codes [rows, x_ld], x_ld a multiple of kProductUnit.
/// Grid:   (tiles of 16 outputs, rows / (8 kTiles)), rounded up. Block: 32 * kProductSlices, a warp
///         a slice of the inputs.
/// Shared: FewRows::kShared bytes. Each warp has a ring of units there that asynchronous copies
///         fill, so that some KiB a warp are always on their way.
/// Bits:   as packed_weights.cuh says.
template <PackedFormat kFormat, int kGroup, int kTiles>
struct FewRows {
  using Unit = PackedUnit<kFormat, kGroup>;
  static constexpr int kStages = Unit::kBFloat ? 3 : 4;
  static constexpr int kStageBytes = Unit::kBytes + Unit::kScaleBytes;
  static constexpr int kRing = kProductSlices * kStages * kStageBytes;
  static constexpr int kSums = kProductSlices * 16 * 8 * kTiles * int(sizeof(float));
  static constexpr int kShared = kRing > kSums ? kRing : kSums;  ///< one after the other
};

template <PackedFormat kFormat, int kGroup, int kTiles>
__global__ void __launch_bounds__(32 * kProductSlices) decode_product(DecodeProductArguments p) {
  using Unit = PackedUnit<kFormat, kGroup>;
  using Few = FewRows<kFormat, kGroup, kTiles>;
  FS_SHARED(unsigned char, memory);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, g = lane >> 2, t = lane & 3;
  const int first = blockIdx.y * 8 * kTiles, units = p.x_ld / kProductUnit;
  const int begin = slice_begin(warp, units), end = slice_begin(warp + 1, units);
  unsigned char* const ring = memory + warp * Few::kStages * Few::kStageBytes;
  const size_t tile = size_t(blockIdx.x) * size_t(units);
  const unsigned char* const weights =
      static_cast<const unsigned char*>(p.weights) + tile * Unit::kBytes;
  const unsigned char* const scales =
      static_cast<const unsigned char*>(p.weight_scales) + tile * Unit::kScaleBytes;
  const auto fetch = [&](int unit) {
    if (unit < end) {
      unsigned char* const stage = ring + (unit - begin) % Few::kStages * Few::kStageBytes;
      FS_UNROLL
      for (int i = lane * 16; i < Unit::kBytes; i += 512)
        copy_async(stage + i, weights + size_t(unit) * Unit::kBytes + i, 16);
      if (lane * 16 < Unit::kScaleBytes)
        copy_async(stage + Unit::kBytes + lane * 16,
                   scales + size_t(unit) * Unit::kScaleBytes + lane * 16, 16);
    }
    copy_commit();
  };
  const auto x_row = [&](int n) {
    const int row = first + n * 8 + g < p.rows ? first + n * 8 + g : first;
    return static_cast<const unsigned char*>(p.x) + at(row, p.x_ld) * Unit::kNumberBytes + t * 4;
  };
  [[maybe_unused]] const RowScales own = row_scales<Unit>(p, blockIdx.x * kProductOutputs + g);
  float acc[kTiles][4] = {};
  for (int i = 0; i < Few::kStages - 1; ++i) fetch(begin + i);
  for (int unit = begin; unit < end; ++unit) {
    copy_wait<Few::kStages - 2>();
    __syncwarp();  // what other lanes fetched is there, too, and the unit before is done with
    fetch(unit + Few::kStages - 1);
    const unsigned char* const stage = ring + (unit - begin) % Few::kStages * Few::kStageBytes;
    if constexpr (Unit::kBFloat) {
      FS_UNROLL
      for (int s = 0; s < Unit::kWords; ++s) {
        const uint4 w = *reinterpret_cast<const uint4*>(stage + s * 512 + lane * 16);
        const uint32_t a[4] = {w.x, w.y, w.z, w.w};
        FS_UNROLL
        for (int n = 0; n < kTiles; ++n) {
          const unsigned char* const x = x_row(n) + size_t(unit) * kProductUnit * 2 + s * 32;
          mma(BFloat16{}, acc[n], a, word_of(x, 0), word_of(x, 16));
        }
      }
    } else {
      IntegerFragments<kFormat, kGroup> w;
      w.load(stage, lane);
      FS_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        const unsigned char* const x = x_row(n) + size_t(unit) * kProductUnit;
        const int row = first + n * 8 + t * 2;
        uint32_t b[2][4];
        FS_UNROLL
        for (int i = 0; i < 8; ++i) b[i / 4][i % 4] = word_of(x, i * 16);
        FS_UNROLL
        for (int group = 0; group < Unit::kXGroups; ++group) {
          int sums[4] = {};
          w.multiply(sums, group, b);
          const float* const by = p.x_scales + at(unit * Unit::kXGroups + group, p.x_scale_ld, row);
          scale_in(acc[n], sums, scales_of<Unit>(own, stage + Unit::kBytes, group, g),
                   row < p.rows ? by[0] : 0.0f, row + 1 < p.rows ? by[1] : 0.0f);
        }
      }
    }
  }
  __syncthreads();  // the rings' memory becomes the sums' [slice][row][output]
  float* const room = reinterpret_cast<float*>(memory);
  FS_UNROLL
  for (int n = 0; n < kTiles; ++n) {
    FS_UNROLL
    for (int e = 0; e < 4; ++e)
      room[((warp * kTiles + n) * 8 + t * 2 + (e & 1)) * 16 + g + (e >> 1) * 8] = acc[n][e];
  }
  __syncthreads();
  const bool gated = p.epilogue == DecodeEpilogue::kSwiGlu;
  for (int i = threadIdx.x; i < 8 * kTiles * 16; i += blockDim.x) {
    const int o = i % 16, row = first + i / 16;
    const auto sum_of = [&](int at_sum) {
      float sum = 0;
      for (int k = 0; k < kProductSlices; ++k) sum += room[k * kTiles * 8 * 16 + at_sum];
      return sum;
    };
    if (!gated)
      finish_decode(p, row, blockIdx.x * kProductOutputs + o, sum_of(i));
    else if (o < 8)  // eight gates, then their ups
      finish_decode_gated(p, row, blockIdx.x * 8 + o, sum_of(i), sum_of(i + 8));
  }
}

}  // namespace fastserve::gpu
