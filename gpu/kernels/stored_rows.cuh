// A piece of a matrix as its rows are stored, on their way to the order of its product.
#pragma once

#include "gpu/simt/simt.h"

namespace fastserve::gpu {

/// Blocks of rows that a matrix may be made of.
constexpr size_t kMostParts = 4;

/// Some packed outputs of a matrix, whose rows a piece has in the order in which a checkpoint holds
/// them: of a gated matrix (each 16 outputs are 8 gates, then their ups) its gates, then its ups.
struct PieceRows {
  int first, outputs;  ///< packed outputs; of a gated matrix, and of codes, multiples of 16
  int rows;            ///< of the whole matrix
  bool gated;

  /// Whose row of the matrix an output of the piece has; -1: nobody's.
  FS_DEVICE int row_of(int output) const {
    const int at = first + output;
    if (!gated) return at < rows ? at : -1;
    const int neuron = at / 16 * 8 + at % 8;
    if (neuron >= rows / 2) return -1;
    return at % 16 < 8 ? neuron : rows / 2 + neuron;
  }
  /// Where the piece has it.
  FS_DEVICE size_t place_of(int output) const {
    if (!gated) return size_t(output);
    return size_t(output / 16 * 8 + output % 8 + (output % 16 < 8 ? 0 : outputs / 2));
  }
};

/// A piece of a quantised matrix.
struct StoredRows {
  PieceRows piece;
  const unsigned char* codes;   ///< [piece.outputs][code_bytes]; 16-byte aligned
  const unsigned char* scales;  ///< [piece.outputs][scale_bytes]; 16-byte aligned
  int code_bytes, scale_bytes;
  int in;
  int ends[kMostParts];  ///< the matrix's rows up to the end of each part
  /// Two counters for each part: codes out of range, scales that are not finite. Or null.
  uint32_t* faults;

  /// Inputs that an output has: none, if it is nobody's.
  FS_DEVICE int inputs_of(int output) const { return piece.row_of(output) < 0 ? 0 : in; }
  FS_DEVICE const unsigned char* codes_of(int output) const {
    return codes + piece.place_of(output) * size_t(code_bytes);
  }
  FS_DEVICE const unsigned char* scales_of(int output) const {
    return scales + piece.place_of(output) * size_t(scale_bytes);
  }
  FS_DEVICE void count(int output, bool in_codes) const {
    if (!faults) return;
    int part = 0;
    for (const int row = piece.row_of(output); row >= ends[part];) ++part;
    atomicAdd(&faults[2 * part + !in_codes], 1u);
  }

  /// Four int8 codes; zeros past `inputs`. `input`: a multiple of 4, as below.
  FS_DEVICE uint32_t four_codes(int output, int input, int inputs) const {
    const unsigned char* const row = codes_of(output);
    if (input + 4 <= inputs && code_bytes % 4 == 0)
      return *reinterpret_cast<const uint32_t*>(row + input);
    uint32_t word = 0;
    for (int e = 0; e < 4 && input + e < inputs; ++e) word |= uint32_t(row[input + e]) << (8 * e);
    return word;
  }

  /// Four int4 codes, one a byte; 8, which is nothing, past `inputs`.
  FS_DEVICE uint32_t four_nibbles(int output, int input, int inputs) const {
    if (input >= inputs) return 0x08080808u;
    const unsigned char* const row = codes_of(output) + input / 2;
    uint32_t two;
    if (input + 4 <= inputs && code_bytes % 2 == 0)
      two = *reinterpret_cast<const uint16_t*>(row);
    else
      two = row[0] | (input + 2 < inputs ? uint32_t(row[1]) << 8 : 0);
    const uint32_t four =
        (two & 0xfu) | (two & 0xf0u) << 4 | (two & 0xf00u) << 8 | (two & 0xf000u) << 12;
    if (input + 4 <= inputs) return four;
    const uint32_t there = (1u << (8 * (inputs - input))) - 1;
    return (four & there) | (0x08080808u & ~there);
  }
};

}  // namespace fastserve::gpu
