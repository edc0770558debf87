// Weights from rows as they are stored to what the inference products read.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"
#include "gpu/kernels/stored_rows.cuh"

namespace fastserve::gpu {

constexpr int kPackThreads = 256;

/// Where a register of mma's a-fragments comes from: `at` counts the registers of a matrix whose
/// fragments cover 16 outputs and `step` inputs each, 32 lanes of 4 registers.
struct FragmentPlace {
  int output, input, lane, part;  ///< output and input of the fragment; part: which of the 4
};
FS_DEVICE FragmentPlace fragment_place(size_t at, int inputs, int step) {
  const size_t fragment = at / 128, row = size_t(inputs / step);
  return {int(fragment / row) * 16, int(fragment % row) * step, int(at % 128 / 4), int(at % 4)};
}

/// words: the bfloat16 fragments of a piece's rows of `in` numbers; zero past `in`, and where an
/// output is nobody's. Grid: registers / kPackThreads, rounded up. Block: kPackThreads. Bits: one
/// rounding.
template <class From>
__global__ void pack_bfloat16_rows(const From* rows, PieceRows piece, int in, int inputs,
                                   uint32_t* words) {
  const size_t at = size_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (at >= size_t(piece.outputs) * size_t(inputs) / 2) return;
  const FragmentPlace place = fragment_place(at, inputs, 16);
  const int output = place.output + place.lane / 4 + (place.part & 1) * 8;
  const int input = place.input + place.lane % 4 * 2 + (place.part >> 1) * 8;
  const From* const row = rows + piece.place_of(output) * size_t(in);
  const int there = piece.row_of(output) < 0 ? 0 : in;
  uint32_t word = 0;
  for (int e = 0; e < 2; ++e)
    if (input + e < there)
      word |= uint32_t(from_float<BFloat16>(as_float(row[input + e])).bits) << (16 * e);
  words[at] = word;
}

FS_DEVICE bool has_zero_byte(uint32_t x) { return ((x - 0x01010101u) & ~x & 0x80808080u) != 0; }

/// words: the int8 fragments, 32 inputs each; -128 is counted. Grid: registers / kPackThreads,
/// rounded up. Block: kPackThreads. Bits: as they are.
static __global__ void pack_int8_rows(StoredRows rows, int inputs, uint32_t* words) {
  const size_t at = size_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (at >= size_t(rows.piece.outputs) * size_t(inputs) / 4) return;
  const FragmentPlace place = fragment_place(at, inputs, 32);
  const int output = place.output + place.lane / 4 + (place.part & 1) * 8;
  const int input = place.input + place.lane % 4 * 4 + (place.part >> 1) * 16;
  const uint32_t word = rows.four_codes(output, input, rows.inputs_of(output));
  if (has_zero_byte(word ^ 0x80808080u)) rows.count(output, true);
  words[at] = word;
}

/// The same of int4 codes, two to a byte, the first one low; fragments of 64 inputs. Where
/// `no_zero`, zeros are counted.
static __global__ void pack_int4_rows(StoredRows rows, int inputs, bool no_zero, uint32_t* words) {
  const size_t at = size_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (at >= size_t(rows.piece.outputs) * size_t(inputs) / 8) return;
  const FragmentPlace place = fragment_place(at, inputs, 64);
  const int output = place.output + place.lane / 4 + (place.part & 1) * 8;
  const int input = place.input + place.lane % 4 * 4 + (place.part >> 1) * 32;
  const int in = rows.inputs_of(output);
  const uint32_t low = rows.four_nibbles(output, input, in);
  const uint32_t high = rows.four_nibbles(output, input + 16, in);
  if (no_zero && (has_zero_byte(low) || has_zero_byte(high))) rows.count(output, true);
  words[at] = low | high << 4;
}

/// to: scales of whole groups, [outputs / 16][groups][16], zero past the `stored` groups of a row.
/// One that is not finite is counted. Grid: scales / kPackThreads, rounded up. Bits: one rounding.
template <class From, class To>
__global__ void pack_scales(StoredRows rows, int stored, int groups, To* to) {
  const size_t at = size_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (at >= size_t(rows.piece.outputs) * size_t(groups)) return;
  const int tile = int(at / 16 / size_t(groups)), group = int(at / 16 % size_t(groups));
  const int output = tile * 16 + int(at % 16);
  float scale = 0;
  if (rows.piece.row_of(output) >= 0 && group < stored)
    scale = as_float(reinterpret_cast<const From*>(rows.scales_of(output))[group]);
  if ((float_bits(scale) & 0x7f800000u) == 0x7f800000u) rows.count(output, false);
  to[at] = from_float<To>(scale);
}

/// Two of four neighbouring codes: those that are not zero, and zeros until there are two.
struct TwoOfFour {
  uint32_t codes, places;  ///< two bytes; two bits each
};
FS_DEVICE TwoOfFour two_of_four(uint32_t four) {
  TwoOfFour kept{};
  int count = 0;
  for (int e = 0; e < 4 && count < 2; ++e) {
    const uint32_t code = four >> (8 * e) & 0xffu;
    if (code == 0 && e < 2 + count) continue;  // those behind it can still fill the two
    kept.codes |= code << (8 * count);
    kept.places |= uint32_t(e) << (2 * count++);
  }
  return kept;
}

/// The same of int8 codes of which two of every four neighbours are zero: PackedUnit's words of a
/// sparse format; -128 is counted. Grid: outputs * inputs * 5 / 32 registers / kPackThreads,
/// rounded up.
static __global__ void pack_sparse_rows(StoredRows rows, int inputs, uint32_t* words) {
  constexpr int kStep = 128, kUnit = 2 * (kStep + 32);  // registers
  const size_t at = size_t(blockIdx.x) * kPackThreads + threadIdx.x, units = size_t(inputs / 128);
  if (at >= size_t(rows.piece.outputs / 16) * units * kUnit) return;
  const int tile = int(at / (units * kUnit)), unit = int(at / kUnit % units), i = int(at % kUnit);
  const bool codes = i < 2 * kStep;
  const int step = codes ? i / kStep : (i - 2 * kStep) / 32, lane = codes ? i % kStep / 4 : i % 32;
  const int part = i % 4, odd = codes ? part & 1 : lane & 1;
  const int output = tile * 16 + lane / 4 + odd * 8;
  const int in = rows.inputs_of(output);
  const int first = unit * 128 + step * 64;
  uint32_t word = 0;
  if (codes) {
    const int input = first + 8 * (lane % 4) + (part >> 1) * 32;  // eight neighbours, four kept
    word = two_of_four(rows.four_codes(output, input, in)).codes |
           two_of_four(rows.four_codes(output, input + 4, in)).codes << 16;
    if (has_zero_byte(word ^ 0x80808080u)) rows.count(output, true);
  } else {
    for (int four = 0; four < 8; ++four)
      word |= two_of_four(rows.four_codes(output, first + lane % 4 / 2 * 32 + 4 * four, in)).places
              << (4 * four);
  }
  words[at] = word;
}

/// to[i] = from[i] in another type. Grid, block: as above, a thread a number.
template <class From, class To>
__global__ void convert_rows(const From* from, size_t n, To* to) {
  const size_t at = size_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (at < n) to[at] = from_float<To>(as_float(from[at]));
}

}  // namespace fastserve::gpu
