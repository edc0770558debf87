// Activations on their way into an inference product: gathered, normalised, and in the form in
// which the weights want to meet them.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"
#include "gpu/kernels/reduce.cuh"

namespace fastserve::gpu {

constexpr int kPrepareThreads = 256;

struct PrepareArguments {
  const float* x;
  int x_ld, in;
  const int32_t* gather;       ///< or null
  const float *weight, *bias;  ///< of the norm; weight null: none
  bool centred;
  float epsilon;
  float* floats;      ///< [rows, ld], or null
  BFloat16* bfloats;  ///< [rows, ld], zero past `in`, or null
  int8_t* codes;      ///< [rows, ld], zero past `in`, or null; then
  float* scales;      ///< [ld / group, scale_ld]: a group of every row, then the next
  int ld, group;      ///< group: 32 or 128
  int scale_ld;
};

/// One value of the row after its norm.
FS_DEVICE float prepared(const PrepareArguments& p, const float* x, int c, float mean,
                         float inverse) {
  if (c >= p.in) return 0;
  if (!p.weight) return x[c];
  return (x[c] - mean) * inverse * p.weight[c] + (p.bias ? p.bias[c] : 0.0f);
}

/// A quantised row: in each run of `group` values s = absmax / 127, code = x / s to nearest even. A
/// value that is not finite makes s so, and with it every output of the row.
///
/// Grid: rows. Block: kPrepareThreads. Shared: 16 floats. Bits: a row's own.
static __global__ void prepare_rows(PrepareArguments p) {
  FS_SHARED(float, room);
  const int row = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const float* const x = p.x + at(p.gather ? p.gather[row] : row, p.x_ld);
  float mean = 0, inverse = 1;
  if (p.weight) {
    float sum = 0;
    if (p.centred) {
      for (int c = threadIdx.x; c < p.in; c += kPrepareThreads) sum += x[c];
      mean = block_reduce<Add>(sum, room) / float(p.in);
    }
    float square = 0;
    for (int c = threadIdx.x; c < p.in; c += kPrepareThreads) {
      const float d = x[c] - mean;
      square += d * d;
    }
    inverse = 1.0f / sqrtf(block_reduce<Add>(square, room + 8) / float(p.in) + p.epsilon);
  }
  if (p.floats)
    for (int c = threadIdx.x; c < p.in; c += kPrepareThreads)
      p.floats[at(row, p.ld, c)] = prepared(p, x, c, mean, inverse);
  if (p.bfloats)
    for (int c = threadIdx.x; c < p.ld; c += kPrepareThreads)
      p.bfloats[at(row, p.ld, c)] = from_float<BFloat16>(prepared(p, x, c, mean, inverse));
  if (!p.codes) return;
  for (int g = warp; g < p.ld / p.group; g += kPrepareThreads / 32) {
    uint32_t top = 0;  // of magnitudes, as integers: a NaN is larger than everything
    for (int c = g * p.group + lane; c < (g + 1) * p.group; c += 32)
      top = Max::of(top, float_bits(prepared(p, x, c, mean, inverse)) & 0x7fffffffu);
    const float peak = bits_float(warp_reduce<Max>(top));
    const float by = peak > 1e-30f ? 127.0f / peak : 0.0f;
    for (int c = g * p.group + lane; c < (g + 1) * p.group; c += 32)
      p.codes[at(row, p.ld, c)] = int8_t(__float2int_rn(prepared(p, x, c, mean, inverse) * by));
    if (lane == 0) p.scales[at(g, p.scale_ld, row)] = peak / 127.0f;
  }
}

}  // namespace fastserve::gpu
