// Weights from rows as they are stored to what the inference products read.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"

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

/// words: the bfloat16 fragments of `outputs` (a multiple of 16) rows of `in` numbers; zero past
/// `in`. Grid: registers / kPackThreads, rounded up. Block: kPackThreads. Bits: one rounding.
template <class From>
__global__ void pack_bfloat16_rows(const From* rows, int outputs, int in, int inputs,
                                   uint32_t* words) {
  const size_t at = size_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (at >= size_t(outputs) * size_t(inputs) / 2) return;
  const FragmentPlace place = fragment_place(at, inputs, 16);
  const int output = place.output + place.lane / 4 + (place.part & 1) * 8;
  const int input = place.input + place.lane % 4 * 2 + (place.part >> 1) * 8;
  const From* const row = rows + size_t(output) * size_t(in);
  uint32_t word = 0;
  for (int e = 0; e < 2; ++e)
    if (input + e < in)
      word |= uint32_t(from_float<BFloat16>(as_float(row[input + e])).bits) << (16 * e);
  words[at] = word;
}

/// Rows of a quantised matrix as they are stored, and whose they are.
struct StoredRows {
  const unsigned char* codes;   ///< [outputs][code_bytes], a multiple of 4
  const unsigned char* scales;  ///< [outputs][scale_bytes]
  const int* parts;             ///< [outputs]; -1: the row is nobody's, and says nothing
  int code_bytes, scale_bytes;
  int outputs, in;  ///< outputs: a multiple of 16
  /// Two counters for each part: codes out of range, scales that are not finite. Or null.
  uint32_t* faults;

  FS_DEVICE const unsigned char* codes_of(int output) const {
    return codes + size_t(output) * size_t(code_bytes);
  }
  FS_DEVICE void count(int output, bool in_codes) const {
    if (faults) atomicAdd(&faults[2 * parts[output] + !in_codes], 1u);
  }
};

FS_DEVICE bool has_zero_byte(uint32_t x) { return ((x - 0x01010101u) & ~x & 0x80808080u) != 0; }

/// Four int8 codes; zeros past `in`.
FS_DEVICE uint32_t four_codes(const unsigned char* row, int input, int in) {
  if (input + 4 <= in) return *reinterpret_cast<const uint32_t*>(row + input);
  uint32_t word = 0;
  for (int e = 0; input + e < in; ++e) word |= uint32_t(row[input + e]) << (8 * e);
  return word;
}

/// words: the int8 fragments, 32 inputs each; -128 is counted. Grid: registers / kPackThreads,
/// rounded up. Block: kPackThreads. Bits: as they are.
static __global__ void pack_int8_rows(StoredRows rows, int inputs, uint32_t* words) {
  const size_t at = size_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (at >= size_t(rows.outputs) * size_t(inputs) / 4) return;
  const FragmentPlace place = fragment_place(at, inputs, 32);
  const int output = place.output + place.lane / 4 + (place.part & 1) * 8;
  const int input = place.input + place.lane % 4 * 4 + (place.part >> 1) * 16;
  const int in = rows.parts[output] < 0 ? 0 : rows.in;
  const uint32_t word = four_codes(rows.codes_of(output), input, in);
  if (has_zero_byte(word ^ 0x80808080u)) rows.count(output, true);
  words[at] = word;
}

/// Four int4 codes of a row, one a byte; 8, which is nothing, past `in`. `input`: a multiple of 4.
FS_DEVICE uint32_t four_nibbles(const unsigned char* row, int input, int in) {
  if (input >= in) return 0x08080808u;
  const uint32_t two = *reinterpret_cast<const uint16_t*>(row + input / 2);
  const uint32_t four =
      (two & 0xfu) | (two & 0xf0u) << 4 | (two & 0xf00u) << 8 | (two & 0xf000u) << 12;
  if (input + 4 <= in) return four;
  const uint32_t there = (1u << (8 * (in - input))) - 1;
  return (four & there) | (0x08080808u & ~there);
}

/// The same of int4 codes, two to a byte, the first one low; fragments of 64 inputs. Where
/// `no_zero`, zeros are counted.
static __global__ void pack_int4_rows(StoredRows rows, int inputs, bool no_zero, uint32_t* words) {
  const size_t at = size_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (at >= size_t(rows.outputs) * size_t(inputs) / 8) return;
  const FragmentPlace place = fragment_place(at, inputs, 64);
  const int output = place.output + place.lane / 4 + (place.part & 1) * 8;
  const int input = place.input + place.lane % 4 * 4 + (place.part >> 1) * 32;
  const unsigned char* const row = rows.codes_of(output);
  const int in = rows.parts[output] < 0 ? 0 : rows.in;
  const uint32_t low = four_nibbles(row, input, in), high = four_nibbles(row, input + 16, in);
  if (no_zero && (has_zero_byte(low) || has_zero_byte(high))) rows.count(output, true);
  words[at] = low | high << 4;
}

/// to: scales of whole groups, [outputs / 16][groups][16], zero past the `stored` groups of a row.
/// One that is not finite is counted. Grid: scales / kPackThreads, rounded up. Bits: one rounding.
template <class From, class To>
__global__ void pack_scales(StoredRows rows, int stored, int groups, To* to) {
  const size_t at = size_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (at >= size_t(rows.outputs) * size_t(groups)) return;
  const int tile = int(at / 16 / size_t(groups)), group = int(at / 16 % size_t(groups));
  const int output = tile * 16 + int(at % 16);
  float scale = 0;
  if (rows.parts[output] >= 0 && group < stored) {
    const unsigned char* const row = rows.scales + size_t(output) * size_t(rows.scale_bytes);
    scale = as_float(reinterpret_cast<const From*>(row)[group]);
  }
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
  if (at >= size_t(rows.outputs / 16) * units * kUnit) return;
  const int tile = int(at / (units * kUnit)), unit = int(at / kUnit % units), i = int(at % kUnit);
  const bool codes = i < 2 * kStep;
  const int step = codes ? i / kStep : (i - 2 * kStep) / 32, lane = codes ? i % kStep / 4 : i % 32;
  const int part = i % 4, odd = codes ? part & 1 : lane & 1;
  const int output = tile * 16 + lane / 4 + odd * 8;
  const unsigned char* const row = rows.codes_of(output);
  const int in = rows.parts[output] < 0 ? 0 : rows.in;
  const int first = unit * 128 + step * 64;
  uint32_t word = 0;
  if (codes) {
    const int input = first + 8 * (lane % 4) + (part >> 1) * 32;  // eight neighbours, four kept
    word = two_of_four(four_codes(row, input, in)).codes |
           two_of_four(four_codes(row, input + 4, in)).codes << 16;
    if (has_zero_byte(word ^ 0x80808080u)) rows.count(output, true);
  } else {
    for (int four = 0; four < 8; ++four)
      word |= two_of_four(four_codes(row, first + lane % 4 / 2 * 32 + 4 * four, in)).places
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
