// Inference weights in the order in which a tensor core's lanes take them, and what every product
// with them shares. gpu/decode_pack.h packs them.
//
// Bits: the inputs, in units of kProductUnit, are cut into kProductSlices slices; an element's
// terms are added unit by unit within a slice, and then the slices in order. Integers within a
// group are exact. So any kernel that keeps to this order gives a row the same bits, whatever its
// tiles: the one for few rows and the one for many may take turns with the batch's size.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"
#include "gpu/simt/tensor_core.h"
#include "model/decode_ops.h"

namespace fastserve::gpu {

struct DecodeProductArguments {
  DecodeEpilogue epilogue;
  int rows, out, in;
  const void* weights;
  const void* weight_scales;  ///< as the packed format says
  const void* x;              ///< as the kernel says
  int x_ld;
  const float* x_scales;  ///< [x_ld / group][x_scale_ld]: a group of every row, then the next
  int x_scale_ld;         ///< rows rounded up to 4
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

constexpr int kProductSlices = 8;
constexpr int kProductUnit = 128;    ///< inputs
constexpr int kProductOutputs = 16;  ///< of a tile
/// First unit of a slice.
FS_DEVICE int slice_begin(int slice, int units) { return slice * units / kProductSlices; }

/// kInt8Row has a float scale for each output; the other integers an f16 one for each group.
enum class PackedFormat : uint8_t { kBFloat16, kInt8Row, kInt8, kInt4 };

/// 16 outputs by a unit of inputs: words of 16 bytes for each of 32 lanes, the a-fragments of mma,
/// [word][lane]; and f16 scales [group][output]. kGroup: inputs that share a scale, of the weights
/// or (always) of int8 activations.
template <PackedFormat kFormat, int kGroup>
struct PackedUnit {
  static constexpr bool kBFloat = kFormat == PackedFormat::kBFloat16;
  static constexpr int kNumberBytes = kBFloat ? 2 : 1;  ///< of an activation
  static constexpr int kWords = kBFloat ? 8 : kFormat == PackedFormat::kInt4 ? 2 : 4;
  static constexpr int kBytes = kWords * 512;
  static constexpr int kXGroups = kBFloat ? 0 : kProductUnit / kGroup;
  static constexpr int kScaleBytes =
      kBFloat || kFormat == PackedFormat::kInt8Row ? 0 : kXGroups * 32;
};

/// Bytes of nibbles 0..15 less eight, as signed bytes.
FS_DEVICE uint32_t centre_nibbles(uint32_t x) {
  return ((x | 0x80808080u) - 0x08080808u) ^ 0x80808080u;
}

/// The a-fragments of a unit's four steps of 32 inputs.
template <PackedFormat kFormat, int kWords>
FS_DEVICE void integer_fragments(const uint4 (&w)[kWords], uint32_t (&a)[4][4]) {
  FS_UNROLL
  for (int s = 0; s < 4; ++s)
    if constexpr (kFormat == PackedFormat::kInt4) {
      const uint32_t low = s & 1 ? w[s / 2].z : w[s / 2].x;
      const uint32_t high = s & 1 ? w[s / 2].w : w[s / 2].y;
      a[s][0] = centre_nibbles(low & 0x0f0f0f0fu);
      a[s][1] = centre_nibbles(high & 0x0f0f0f0fu);
      a[s][2] = centre_nibbles(low >> 4 & 0x0f0f0f0fu);
      a[s][3] = centre_nibbles(high >> 4 & 0x0f0f0f0fu);
    } else {
      a[s][0] = w[s].x, a[s][1] = w[s].y, a[s][2] = w[s].z, a[s][3] = w[s].w;
    }
}

/// Scales of a lane's two outputs, g and g + 8 of a tile.
struct RowScales {
  float low, high;
};
/// kInt8Row: of outputs `o` and o + 8; otherwise nothing.
template <PackedFormat kFormat>
FS_DEVICE RowScales row_scales(const DecodeProductArguments& p, int o) {
  if constexpr (kFormat != PackedFormat::kInt8Row) return {};
  const float* const all = static_cast<const float*>(p.weight_scales);
  return {all[o], all[o + 8]};
}
/// Those of one group; `scales`: the unit's.
template <PackedFormat kFormat>
FS_DEVICE RowScales scales_of(const RowScales& own, const unsigned char* scales, int group, int g) {
  if constexpr (kFormat == PackedFormat::kInt8Row) return own;
  const Float16* const some = reinterpret_cast<const Float16*>(scales) + group * 16 + g;
  return {as_float(some[0]), as_float(some[8])};
}

/// acc += sums by their scales, x0 and x1 being those of the lane's two rows; sums = 0.
FS_DEVICE void scale_in(float (&acc)[4], int (&sums)[4], const RowScales& w, float x0, float x1) {
  FS_UNROLL
  for (int e = 0; e < 4; ++e) {
    acc[e] = fmaf(float(sums[e]), (e >> 1 ? w.high : w.low) * (e & 1 ? x1 : x0), acc[e]);
    sums[e] = 0;
  }
}

FS_DEVICE uint32_t word_of(const void* row, size_t byte) {
  return *reinterpret_cast<const uint32_t*>(static_cast<const unsigned char*>(row) + byte);
}

}  // namespace fastserve::gpu
