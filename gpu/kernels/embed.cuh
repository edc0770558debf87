// Looking rows of a table up, and adding gradients back to them.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"

namespace fastserve::gpu {

/// out[r] = token_table[tokens[r]] (+ position_table[positions[r]]), rows of floats.
///
/// Grid: rows. Block: any. Bits: one addition.
template <class T>
__global__ void embed_forward(const int32_t* tokens, const int32_t* positions, const T* token_table,
                              const float* position_table, float* out, int channels) {
  let_next_begin();
  wait_for_previous();
  const int row = blockIdx.x;
  const T* const token = token_table + at(tokens[row], channels);
  const float* const place =
      position_table ? position_table + at(positions[row], channels) : nullptr;
  for (int c = threadIdx.x; c < channels; c += blockDim.x)
    out[at(row, channels, c)] = as_float(token[c]) + (place ? place[c] : 0.0f);
}

/// table[key] += dx[r] for every row r of each key, in row order.
///
/// `keys`: the distinct ones; `order`: rows sorted by key, `begin[i] .. begin[i + 1]` those of key
/// i. Grid: keys. Block: any. Bits: one chain a key and column, by row.
template <class T>
__global__ void embed_backward(const int32_t* keys, const int32_t* begin, const int32_t* order,
                               const T* dx, float* table, int channels) {
  const int first = begin[blockIdx.x], end = begin[blockIdx.x + 1];
  float* const to = table + at(keys[blockIdx.x], channels);
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    float sum = to[c];
    for (int i = first; i < end; ++i) sum += as_float(dx[at(order[i], channels, c)]);
    to[c] = sum;
  }
}

}  // namespace fastserve::gpu
