// Sums and maxima over a warp and a block. Every thread gets the result, and its bits depend on the
// values and the block's size alone.
#pragma once

#include "gpu/simt/simt.h"

namespace fastserve::gpu {

struct Add {
  template <class T>
  static FS_DEVICE T of(T a, T b) {
    return a + b;
  }
};
struct Max {
  static FS_DEVICE float of(float a, float b) { return fmaxf(a, b); }
  static FS_DEVICE uint32_t of(uint32_t a, uint32_t b) { return a > b ? a : b; }
};

template <class Op, class T>
FS_DEVICE T warp_reduce(T value) {
  FS_UNROLL
  for (int by = 16; by > 0; by >>= 1) value = Op::of(value, __shfl_xor_sync(kWholeWarp, value, by));
  return value;
}

/// `room`: shared, one T a warp. The block has whole warps, and all of its threads call.
template <class Op, class T>
FS_DEVICE T block_reduce(T value, T* room) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  value = warp_reduce<Op>(value);
  if (lane == 0) room[warp] = value;
  __syncthreads();
  value = room[0];
  for (int w = 1; w < warps; ++w) value = Op::of(value, room[w]);
  __syncthreads();  // before the room is used again
  return value;
}

}  // namespace fastserve::gpu
