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
  int tiles, units;  ///< of 16 packed outputs; of kProductUnit inputs
  int stages;        ///< of decode_product's rings
};

/// What kAdd adds to.
FS_DEVICE float decode_residual(const DecodeProductArguments& p, int row, int o) {
  const bool there = p.epilogue == DecodeEpilogue::kAdd && row < p.rows && o < p.out;
  return there ? p.y[at(row, p.y_ld, o)] : 0.0f;
}
/// What becomes of the sum for output `o` of a row; kSwiGlu has its own.
FS_DEVICE void finish_decode(const DecodeProductArguments& p, int row, int o, float value,
                             float residual) {
  if (row >= p.rows || o >= p.out) return;
  if (p.bias) value += p.bias[o];
  if (p.epilogue == DecodeEpilogue::kAdd) value += residual;
  p.y[at(row, p.y_ld, o)] = p.epilogue == DecodeEpilogue::kGelu ? gelu(value).value : value;
}
FS_DEVICE void finish_decode(const DecodeProductArguments& p, int row, int o, float value) {
  finish_decode(p, row, o, value, decode_residual(p, row, o));
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

/// Formats of weights that tensor cores take. kInt8Row has a float scale for each output, the other
/// integers an f16 one for each group. kSparse...: two of every four neighbours are zero and left
/// out.
enum class PackedFormat : uint8_t {
  kBFloat16,
  kInt8Row,
  kInt8,
  kInt4,
  kSparseInt8Row,
  kSparseInt8
};

/// 16 outputs by a unit of inputs: words of 16 bytes for each of 32 lanes, the a-fragments of mma,
/// [word][lane]; for sparse ones the places of each word's numbers, 4 bytes a lane; and f16 scales
/// [group][output]. kGroup: inputs that share a scale, of the weights or (always) of int8
/// activations.
template <PackedFormat kFormat, int kGroup>
struct PackedUnit {
  static constexpr bool kBFloat = kFormat == PackedFormat::kBFloat16;
  static constexpr bool kSparse =
      kFormat == PackedFormat::kSparseInt8 || kFormat == PackedFormat::kSparseInt8Row;
  static constexpr bool kRowScale =
      kFormat == PackedFormat::kInt8Row || kFormat == PackedFormat::kSparseInt8Row;
  static constexpr int kNumberBytes = kBFloat ? 2 : 1;  ///< of an activation
  static constexpr int kWords = kBFloat ? 8 : kSparse || kFormat == PackedFormat::kInt4 ? 2 : 4;
  static constexpr int kBytes = kWords * 512 + (kSparse ? kWords * 128 : 0);
  static constexpr int kXGroups = kBFloat ? 0 : kProductUnit / kGroup;
  static constexpr int kScaleBytes = kBFloat || kRowScale ? 0 : kXGroups * 32;
};

/// Bytes of nibbles 0..15 less eight, as signed bytes.
FS_DEVICE uint32_t centre_nibbles(uint32_t x) {
  return ((x | 0x80808080u) - 0x08080808u) ^ 0x80808080u;
}

/// A unit's a-fragments: of four steps of 32 inputs, or of two of 64 with what is left out.
template <PackedFormat kFormat, int kGroup>
struct IntegerFragments {
  using Unit = PackedUnit<kFormat, kGroup>;
  uint32_t a[Unit::kSparse ? 2 : 4][4];
  uint32_t places[Unit::kSparse ? 2 : 1];

  /// `unit`: as it was copied to shared memory.
  FS_DEVICE void load(const unsigned char* unit, int lane) {
    constexpr int kWords = Unit::kBFloat ? 4 : Unit::kWords;  // a half of bfloat16's
    uint4 w[kWords];
    FS_UNROLL
    for (int s = 0; s < kWords; ++s)
      w[s] = *reinterpret_cast<const uint4*>(unit + s * 512 + lane * 16);
    if constexpr (kFormat == PackedFormat::kInt4) {
      FS_UNROLL
      for (int s = 0; s < 4; ++s) {
        const uint32_t low = s & 1 ? w[s / 2].z : w[s / 2].x;
        const uint32_t high = s & 1 ? w[s / 2].w : w[s / 2].y;
        a[s][0] = centre_nibbles(low & 0x0f0f0f0fu);
        a[s][1] = centre_nibbles(high & 0x0f0f0f0fu);
        a[s][2] = centre_nibbles(low >> 4 & 0x0f0f0f0fu);
        a[s][3] = centre_nibbles(high >> 4 & 0x0f0f0f0fu);
      }
    } else {
      FS_UNROLL
      for (int s = 0; s < kWords; ++s)
        a[s][0] = w[s].x, a[s][1] = w[s].y, a[s][2] = w[s].z, a[s][3] = w[s].w;
    }
    if constexpr (Unit::kSparse) {
      FS_UNROLL
      for (int s = 0; s < 2; ++s)
        places[s] =
            *reinterpret_cast<const uint32_t*>(unit + Unit::kWords * 512 + s * 128 + lane * 4);
    }
  }
  /// Sums over one group; b: the activations' fragments of the unit, two registers a step of 32.
  FS_DEVICE void multiply(int (&sums)[4], int group, const uint32_t (&b)[2][4]) const {
    if constexpr (Unit::kSparse) {
      mma_sparse_s8(sums, a[0], b[0], places[0]);
      mma_sparse_s8(sums, a[1], b[1], places[1]);
    } else {
      FS_UNROLL
      for (int i = 0; i < kGroup / 32; ++i) {
        const int s = group * (kGroup / 32) + i;
        mma_s8(sums, a[s], b[s / 2][s % 2 * 2], b[s / 2][s % 2 * 2 + 1]);
      }
    }
  }
};

/// Scales of a lane's two outputs, g and g + 8 of a tile.
struct RowScales {
  float low, high;
};
/// Where an output has one scale: of outputs `o` and o + 8; otherwise nothing.
template <class Unit>
FS_DEVICE RowScales row_scales(const DecodeProductArguments& p, int o) {
  if constexpr (!Unit::kRowScale) return {};
  const float* const all = static_cast<const float*>(p.weight_scales);
  return {all[o], all[o + 8]};
}
/// Those of one group; `scales`: the unit's.
template <class Unit>
FS_DEVICE RowScales scales_of(const RowScales& own, const unsigned char* scales, int group, int g) {
  if constexpr (Unit::kRowScale) return own;
  const Float16* const some = reinterpret_cast<const Float16*>(scales) + group * 16 + g;
  return {as_float(some[0]), as_float(some[8])};
}

/// acc += sums by their scales, x0 and x1 being those of the lane's two rows.
FS_DEVICE void scale_in(float (&acc)[4], const int (&sums)[4], const RowScales& w, float x0,
                        float x1) {
  FS_UNROLL
  for (int e = 0; e < 4; ++e)
    acc[e] = fmaf(float(sums[e]), (e >> 1 ? w.high : w.low) * (e & 1 ? x1 : x0), acc[e]);
}

FS_DEVICE uint32_t word_of(const void* row, size_t byte) {
  return *reinterpret_cast<const uint32_t*>(static_cast<const unsigned char*>(row) + byte);
}

}  // namespace fastserve::gpu
