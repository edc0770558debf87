// Inference products: a few rows of activations against weights that are read once.
//
// Every kernel here adds an element's terms in an order fixed by the weights' shape, so that a
// row's bits do not depend on how many rows share the batch.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"
#include "gpu/kernels/reduce.cuh"
#include "gpu/kernels/wide.cuh"
#include "gpu/simt/tensor_core.h"
#include "model/decode_ops.h"

namespace fastserve::gpu {

struct DecodeProductArguments {
  DecodeEpilogue epilogue;
  int rows, out, in;
  const void* weights;
  const float* weight_scales;
  const void* x;  ///< as the kernel says
  int x_ld;
  const float* x_scales;
  const float* bias;
  float* y;
  int y_ld;
};

/// What becomes of the sum for output `o` of a row; kSwiGlu has its own.
FS_DEVICE void finish_decode(const DecodeProductArguments& p, int row, int o, float value) {
  if (row >= p.rows || o >= p.out) return;
  if (p.bias) value += p.bias[o];
  float& y = p.y[at(row, p.y_ld, o)];
  if (p.epilogue == DecodeEpilogue::kAdd) value += y;
  y = p.epilogue == DecodeEpilogue::kGelu ? gelu(value).value : value;
}
FS_DEVICE void finish_decode_gated(const DecodeProductArguments& p, int row, int neuron, float gate,
                                   float up) {
  const int neurons = p.out / 2;
  if (row >= p.rows || neuron >= neurons) return;
  if (p.bias) {
    gate += p.bias[neuron];
    up += p.bias[neurons + neuron];
  }
  p.y[at(row, p.y_ld, neuron)] = silu(gate).value * up;
}

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

constexpr int kProductWarps = 8;     ///< of a block; each takes every eighth unit of the inputs
constexpr int kProductUnit = 128;    ///< inputs
constexpr int kProductOutputs = 16;  ///< of a block
constexpr int kMostRowTiles = 8;     ///< tiles of eight rows that a block takes

/// Formats of weights for tensor cores, in the order in which lanes read them: 16 outputs by a step
/// of inputs are 32 lanes times 16 bytes, the a-fragments of mma. See decode_pack.h.
enum class PackedFormat : uint8_t { kBFloat16, kInt8, kInt4 };

template <PackedFormat kFormat>
struct PackedStep {
  static constexpr int kInputs = kFormat == PackedFormat::kBFloat16 ? 16
                                 : kFormat == PackedFormat::kInt8   ? 32
                                                                    : 64;
};

/// Bytes of nibbles 0..15 less eight, as signed bytes.
FS_DEVICE uint32_t centre_nibbles(uint32_t x) {
  return ((x | 0x80808080u) - 0x08080808u) ^ 0x80808080u;
}

/// acc += the product of one unit of inputs, for tile `n` of eight rows.
///
/// kGroup: inputs that share a scale of the weights (32 or 128; a row's own scale counts as 128),
/// and one of the activations. `whole_row`: weights have one scale a row.
template <int kGroup>
FS_DEVICE void scale_in(float (&acc)[4], const int (&sums)[4], const DecodeProductArguments& p,
                        int output, int row, int group, bool whole_row) {
  const int groups = p.x_ld / kGroup;
  FS_UNROLL
  for (int e = 0; e < 4; ++e) {
    const int o = output + (e >> 1) * 8, r = row + (e & 1);
    const float w = p.weight_scales[whole_row ? o : at(o, groups, group)];
    const float x = r < p.rows ? p.x_scales[at(r, groups, group)] : 0.0f;
    acc[e] = fmaf(float(sums[e]), w * x, acc[e]);
  }
}

FS_DEVICE uint32_t word_of(const void* row, size_t byte) {
  return *reinterpret_cast<const uint32_t*>(static_cast<const unsigned char*>(row) + byte);
}

/// y = x W^T on tensor cores, weights in fragment order.
///
/// x:      bfloat16 or int8 codes [rows, x_ld], x_ld a multiple of kProductUnit.
/// Grid:   (outputs / 16, rows / (8 kTiles)), rounded up. Block: 32 * kProductWarps.
/// Shared: kProductWarps * 16 * 8 * kTiles floats.
/// Bits:   warp w adds units w, w + 8, ... in order; then the warps in order. Integers are exact.
template <PackedFormat kFormat, int kGroup, int kTiles>
__global__ void __launch_bounds__(32 * kProductWarps)
    decode_product(DecodeProductArguments p, bool whole_row) {
  FS_SHARED(float, room);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, g = lane >> 2, t = lane & 3;
  constexpr int kInputs = PackedStep<kFormat>::kInputs, kSteps = kProductUnit / kInputs;
  const int first = blockIdx.y * 8 * kTiles, units = p.x_ld / kProductUnit;
  const uint4* const weights = static_cast<const uint4*>(p.weights) +
                               size_t(blockIdx.x) * size_t(units) * kSteps * 32 + lane;
  constexpr int kBytes = kFormat == PackedFormat::kBFloat16 ? 2 : 1;
  const auto x_row = [&](int n) {
    const int row = first + n * 8 + g < p.rows ? first + n * 8 + g : first;
    return static_cast<const unsigned char*>(p.x) + at(row, p.x_ld) * kBytes + t * 4;
  };
  float acc[kTiles][4] = {};
  for (int unit = warp; unit < units; unit += kProductWarps) {
    uint4 w[kSteps];
    FS_UNROLL
    for (int s = 0; s < kSteps; ++s) w[s] = weights[(size_t(unit) * kSteps + s) * 32];
    FS_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      const unsigned char* const x = x_row(n) + size_t(unit) * kProductUnit * kBytes;
      if constexpr (kFormat == PackedFormat::kBFloat16) {
        FS_UNROLL
        for (int s = 0; s < kSteps; ++s) {
          const uint32_t a[4] = {w[s].x, w[s].y, w[s].z, w[s].w};
          mma(BFloat16{}, acc[n], a, word_of(x, s * 32), word_of(x, s * 32 + 16));
        }
      } else {
        int sums[4] = {};
        FS_UNROLL
        for (int s = 0; s < kProductUnit / 32; ++s) {
          uint32_t a[4];
          if constexpr (kFormat == PackedFormat::kInt8) {
            a[0] = w[s].x, a[1] = w[s].y, a[2] = w[s].z, a[3] = w[s].w;
          } else {
            const uint32_t low = s & 1 ? w[s / 2].z : w[s / 2].x;
            const uint32_t high = s & 1 ? w[s / 2].w : w[s / 2].y;
            a[0] = centre_nibbles(low & 0x0f0f0f0fu);
            a[1] = centre_nibbles(high & 0x0f0f0f0fu);
            a[2] = centre_nibbles(low >> 4 & 0x0f0f0f0fu);
            a[3] = centre_nibbles(high >> 4 & 0x0f0f0f0fu);
          }
          mma_s8(sums, a, word_of(x, s * 32), word_of(x, s * 32 + 16));
          if (kGroup == 128 && s + 1 < kProductUnit / 32) continue;
          scale_in<kGroup>(acc[n], sums, p, blockIdx.x * kProductOutputs + g, first + n * 8 + t * 2,
                           kGroup == 32 ? unit * 4 + s : unit, whole_row);
          sums[0] = sums[1] = sums[2] = sums[3] = 0;
        }
      }
    }
  }
  // [warp][row][output]
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
      for (int k = 0; k < kProductWarps; ++k) sum += room[k * kTiles * 8 * 16 + at_sum];
      return sum;
    };
    if (!gated)
      finish_decode(p, row, blockIdx.x * kProductOutputs + o, sum_of(i));
    else if (o < 8)  // eight gates, then their ups
      finish_decode_gated(p, row, blockIdx.x * 8 + o, sum_of(i), sum_of(i + 8));
  }
}

}  // namespace fastserve::gpu
