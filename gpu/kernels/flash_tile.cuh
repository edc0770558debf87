// Tiles of 64 rows of one head, and their products by warp: what flash attention is made of.
//
// A block has four warps; each owns 16 rows of a 64 x 64 tile of scores. kDim is head_dim rounded
// up to a shape of the kernel; what lies past head_dim is zero in shared memory and not written.
#pragma once

#include "gpu/kernels/attention.cuh"
#include "gpu/simt/tensor_core.h"

namespace fastserve::gpu {

constexpr int kFlashRows = 64, kFlashThreads = 128;

template <class T, int kDim>
struct HeadTile {
  static constexpr int kLd = kDim + 8;  // 16 bytes more: rows of a matrix in different banks
  static constexpr int kElements = kFlashRows * kLd;

  /// Starts the copy of rows first .. first + 63 of a head; zero from `end` on.
  static FS_DEVICE void load(T* tile, const T* head, int ld, int head_dim, int first, int end) {
    for (int i = threadIdx.x; i < kFlashRows * (kDim / 8); i += kFlashThreads) {
      const int r = i / (kDim / 8), c = i % (kDim / 8) * 8;
      const bool there = first + r < end && c < head_dim;
      copy_async(tile + r * kLd + c, head + (there ? at(first + r, ld, c) : 0), there ? 16 : 0);
    }
  }
};

/// s [16, 64] = a b^T over kDim: `a` the warp's 16 rows of a tile, b a whole tile.
template <class T, int kDim>
FS_DEVICE void scores(float (&s)[8][4], const T* a, const T* b) {
  constexpr int kLd = HeadTile<T, kDim>::kLd;
  const int lane = threadIdx.x & 31;
  FS_UNROLL
  for (int n = 0; n < 8; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
  FS_UNROLL
  for (int depth = 0; depth < kDim; depth += 16) {
    uint32_t fa[4];
    load_matrix(fa, a + (lane & 15) * kLd + depth + (lane >> 4) * 8);
    FS_UNROLL
    for (int n = 0; n < 8; n += 2) {
      uint32_t fb[4];
      load_matrix(fb,
                  b + (n * 8 + (lane >> 4) * 8 + (lane & 7)) * kLd + depth + (lane >> 3 & 1) * 8);
      mma(T{}, s[n], fa, fb[0], fb[1]);
      mma(T{}, s[n + 1], fa, fb[2], fb[3]);
    }
  }
}

/// acc [16, kDim] += w b: w [16, 64] the warp's weights, rounded to T; b [64, kDim] a tile.
template <class T, int kDim>
FS_DEVICE void weigh(float (&acc)[kDim / 8][4], const float (&w)[8][4], const T* b) {
  constexpr int kLd = HeadTile<T, kDim>::kLd;
  const int lane = threadIdx.x & 31;
  FS_UNROLL
  for (int depth = 0; depth < 4; ++depth) {
    const uint32_t fa[4] = {pack_two<T>(w[2 * depth][0], w[2 * depth][1]),
                            pack_two<T>(w[2 * depth][2], w[2 * depth][3]),
                            pack_two<T>(w[2 * depth + 1][0], w[2 * depth + 1][1]),
                            pack_two<T>(w[2 * depth + 1][2], w[2 * depth + 1][3])};
    FS_UNROLL
    for (int n = 0; n < kDim / 8; n += 2) {
      uint32_t fb[4];
      load_matrix_transposed(fb, b + (depth * 16 + (lane & 15)) * kLd + n * 8 + (lane >> 4) * 8);
      mma(T{}, acc[n], fa, fb[0], fb[1]);
      mma(T{}, acc[n + 1], fa, fb[2], fb[3]);
    }
  }
}

/// Writes the warp's rows of acc, row i of the fragment (g or g + 8) times scale[i]; rows from
/// `end` on and columns past head_dim are left out.
template <class T, int kDim>
FS_DEVICE void store_rows(const float (&acc)[kDim / 8][4], const float (&scale)[2], T* head, int ld,
                          int head_dim, int first, int end) {
  const int lane = threadIdx.x & 31;
  FS_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int row = first + (lane >> 2) + i * 8;
    if (row >= end) continue;
    FS_UNROLL
    for (int n = 0; n < kDim / 8; ++n) {
      const int c = n * 8 + (lane & 3) * 2;
      if (c < head_dim)
        *reinterpret_cast<uint32_t*>(head + at(row, ld, c)) =
            pack_two<T>(acc[n][2 * i] * scale[i], acc[n][2 * i + 1] * scale[i]);
    }
  }
}

}  // namespace fastserve::gpu
