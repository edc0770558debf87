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

/// The same of int8 codes, fragments of 32 inputs.
static __global__ void pack_int8_rows(const uint8_t* rows, int outputs, int in, int inputs,
                                      uint32_t* words) {
  const size_t at = size_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (at >= size_t(outputs) * size_t(inputs) / 4) return;
  const FragmentPlace place = fragment_place(at, inputs, 32);
  const int output = place.output + place.lane / 4 + (place.part & 1) * 8;
  const int input = place.input + place.lane % 4 * 4 + (place.part >> 1) * 16;
  const uint8_t* const row = rows + size_t(output) * size_t(in);
  uint32_t word = 0;
  for (int e = 0; e < 4; ++e)
    if (input + e < in) word |= uint32_t(row[input + e]) << (8 * e);
  words[at] = word;
}

/// Two of four neighbouring codes: those that are not zero, and zeros until there are two.
struct TwoOfFour {
  uint32_t codes, places;  ///< two bytes; two bits each
};
FS_DEVICE TwoOfFour two_of_four(const uint8_t* row, int input, int in) {
  TwoOfFour kept{};
  int count = 0;
  for (int e = 0; e < 4 && count < 2; ++e) {
    const uint32_t code = input + e < in ? row[input + e] : 0;
    if (code == 0 && e < 2 + count) continue;  // those behind it can still fill the two
    kept.codes |= code << (8 * count);
    kept.places |= uint32_t(e) << (2 * count++);
  }
  return kept;
}

/// The same of int8 codes of which two of every four neighbours are zero: PackedUnit's words of a
/// sparse format. Grid: outputs * inputs * 5 / 32 registers / kPackThreads, rounded up.
static __global__ void pack_sparse_rows(const uint8_t* rows, int outputs, int in, int inputs,
                                        uint32_t* words) {
  constexpr int kStep = 128, kUnit = 2 * (kStep + 32);  // registers
  const size_t at = size_t(blockIdx.x) * kPackThreads + threadIdx.x, units = size_t(inputs / 128);
  if (at >= size_t(outputs / 16) * units * kUnit) return;
  const int tile = int(at / (units * kUnit)), unit = int(at / kUnit % units), i = int(at % kUnit);
  const bool codes = i < 2 * kStep;
  const int step = codes ? i / kStep : (i - 2 * kStep) / 32, lane = codes ? i % kStep / 4 : i % 32;
  const int part = i % 4, odd = codes ? part & 1 : lane & 1;
  const uint8_t* const row = rows + size_t(tile * 16 + lane / 4 + odd * 8) * size_t(in);
  const int first = unit * 128 + step * 64;
  uint32_t word = 0;
  if (codes) {
    const int input = first + 8 * (lane % 4) + (part >> 1) * 32;  // eight neighbours, four kept
    word = two_of_four(row, input, in).codes | two_of_four(row, input + 4, in).codes << 16;
  } else {
    for (int four = 0; four < 8; ++four)
      word |= two_of_four(row, first + lane % 4 / 2 * 32 + 4 * four, in).places << (4 * four);
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
