// Looking rows of a table up, and adding gradients back to them.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"
#include "gpu/kernels/wide.cuh"

namespace fastserve::gpu {

/// out[r] = token_table[tokens[r]] (+ position_table[positions[r]]), rows of floats.
///
/// Grid: rows / kRows, rounded up. Block: any. Bits: one addition.
/// Needs: kWide > 1: channels a multiple of it, tables and out on 16 bytes.
template <class T, int kWide = 1, int kRows = 1>
__global__ void embed_forward(const int32_t* tokens, const int32_t* positions, const T* token_table,
                              const float* position_table, float* out, int rows, int channels) {
  let_next_begin();
  wait_for_previous();
  const int first = blockIdx.x * kRows;
  const T* token[kRows];
  const float* place[kRows];
  FS_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const int row = first + r < rows ? first + r : rows - 1;
    token[r] = token_table + at(tokens[row], channels);
    place[r] = position_table ? position_table + at(positions[row], channels) : nullptr;
  }
  for (int c = threadIdx.x * kWide; c < channels; c += blockDim.x * kWide) {
    Wide<kWide> x[kRows], y[kRows];
    FS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      x[r] = load_wide<kWide>(token[r] + c);
      y[r] = position_table ? load_wide<kWide>(place[r] + c) : Wide<kWide>{};
    }
    FS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (first + r >= rows) break;
      FS_UNROLL
      for (int i = 0; i < kWide; ++i) x[r].v[i] += y[r].v[i];
      store_wide(out + at(first + r, channels, c), x[r]);
    }
  }
}

constexpr int kEmbedWarps = 8;
constexpr int kEmbedAtOnce = 12;  ///< rows of a key that are on their way together

/// table[key] += dx[r] for every row r of each key, in row order.
///
/// `keys`: the distinct ones; `order`: rows by key, `begin[i] .. begin[i + 1]` those of key i, in
/// order. A warp takes 32 * kWide columns of one key.
///
/// Grid: (keys / kEmbedWarps, channels / (32 * kWide)), rounded up. Block: (32, kEmbedWarps).
/// Needs: kWide > 1: channels a multiple of it, dx and table on 16 bytes.
/// Bits: one chain a key and column, by row.
template <int kWide>
__global__ void __launch_bounds__(32 * kEmbedWarps, 3)
    embed_backward(const int32_t* keys, const int32_t* begin, const int32_t* order, int count,
                   const float* dx, float* table, int channels) {
  const int key = blockIdx.x * kEmbedWarps + threadIdx.y;
  const int c = (blockIdx.y * 32 + threadIdx.x) * kWide;
  if (key >= count || c >= channels) return;
  const int end = begin[key + 1];
  float* const to = table + at(keys[key], channels, c);
  Wide<kWide> sum = load_wide<kWide>(to);
  FS_NO_UNROLL
  for (int from = begin[key]; from < end; from += kEmbedAtOnce) {
    Wide<kWide> x[kEmbedAtOnce];
    FS_UNROLL
    for (int k = 0; k < kEmbedAtOnce; ++k)
      if (from + k < end) x[k] = load_wide<kWide>(dx + at(order[from + k], channels, c));
    FS_UNROLL
    for (int k = 0; k < kEmbedAtOnce; ++k) {
      if (from + k >= end) break;
      FS_UNROLL
      for (int i = 0; i < kWide; ++i) sum.v[i] += x[k].v[i];
    }
  }
  store_wide(to, sum);
}

}  // namespace fastserve::gpu
