// Tiles of 64 rows of one head, and their products by warp: what flash attention is made of.
//
// A block has four warps; each owns 16 of the tile's rows. What it walks over comes kStep rows at a
// time. kDim is head_dim rounded up to a shape of the kernel; what lies past head_dim is zero in
// shared memory and not written.
#pragma once

#include "gpu/kernels/attention.cuh"
#include "gpu/simt/tensor_core.h"

namespace fastserve::gpu {

constexpr int kFlashRows = 64, kFlashThreads = 128;

/// A shape's budget: with 64 rows a step heads above 128 would take more than the 163 KiB of shared
/// memory that a block of compute capability 8.0 can have, so there it is 32.
template <class T, int kDim>
struct FlashShape {
  static constexpr int kLd = kDim + 8;  // 16 bytes more: rows of a matrix in different banks
  static constexpr int kStep = kDim <= 128 ? 64 : 32;
  static constexpr int kOwn = kFlashRows * kLd, kOther = kStep * kLd;  ///< elements of a tile
  /// Parts of head_dim whose gradients of keys and values a block keeps in registers.
  static constexpr int kParts = kDim <= 128 ? 1 : 2, kPart = kDim / kParts;
  /// Two tiles that are walked over, twice: the next is on its way.
  static constexpr size_t kRing = 4 * kOther * sizeof(T);
  static constexpr size_t kForwardShared = kRing + kOwn * sizeof(T);
  static constexpr size_t kBackwardShared =
      kRing + 2 * kOwn * sizeof(T) + 4 * kStep * sizeof(float);
};

/// Starts the copy of rows first .. first + kRows - 1 of a head; zero from `end` on.
template <int kRows, int kDim, class T>
FS_DEVICE void load_rows(T* tile, const T* head, int ld, int head_dim, int first, int end) {
  for (int i = threadIdx.x; i < kRows * (kDim / 8); i += kFlashThreads) {
    const int r = i / (kDim / 8), c = i % (kDim / 8) * 8;
    const bool there = first + r < end && c < head_dim;
    copy_async(tile + r * FlashShape<T, kDim>::kLd + c, head + (there ? at(first + r, ld, c) : 0),
               there ? 16 : 0);
  }
}

/// The keys that a tile of queries meets, and their values: kStep at a time through a ring.
template <class T, int kDim>
class KeyRing {
 public:
  using Shape = FlashShape<T, kDim>;
  FS_DEVICE KeyRing(const AttentionArguments& p, const AttentionTile& me,
                    const HeadColumns<T>& heads, T* ring)
      : p_(p), me_(me), heads_(heads), ring_(ring) {
    const int last = me.first + kFlashRows < me.end ? me.first + kFlashRows : me.end;
    begin_ =
        me.start + (first_seen(p, me.first, me.start) - me.start) / Shape::kStep * Shape::kStep;
    steps_ = (last - begin_ + Shape::kStep - 1) / Shape::kStep;
  }
  FS_DEVICE int steps() const { return steps_; }
  FS_DEVICE int first(int step) const { return begin_ + step * Shape::kStep; }
  FS_DEVICE const T* keys(int step) const { return ring_ + (step & 1) * 2 * Shape::kOther; }
  FS_DEVICE const T* values(int step) const { return keys(step) + Shape::kOther; }
  FS_DEVICE void load(int step) const {
    if (step >= steps_) return;
    T* const to = ring_ + (step & 1) * 2 * Shape::kOther;
    load_rows<Shape::kStep, kDim>(to, heads_.keys(p_), heads_.width, p_.head_dim, first(step),
                                  me_.end);
    load_rows<Shape::kStep, kDim>(to + Shape::kOther, heads_.values(p_), heads_.width, p_.head_dim,
                                  first(step), me_.end);
  }

 private:
  const AttentionArguments& p_;
  const AttentionTile& me_;
  const HeadColumns<T>& heads_;
  T* ring_;
  int begin_, steps_;
};

/// s [16, 8 kTiles] = a b^T over kDim: `a` the warp's 16 rows of a tile, b a whole tile.
template <class T, int kDim, int kTiles>
FS_DEVICE void scores(float (&s)[kTiles][4], const T* a, const T* b) {
  constexpr int kLd = FlashShape<T, kDim>::kLd;
  const int lane = threadIdx.x & 31;
  FS_UNROLL
  for (int n = 0; n < kTiles; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
  FS_UNROLL
  for (int depth = 0; depth < kDim; depth += 16) {
    uint32_t fa[4];
    load_matrix(fa, a + (lane & 15) * kLd + depth + (lane >> 4) * 8);
    FS_UNROLL
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t fb[4];
      load_matrix(fb,
                  b + (n * 8 + (lane >> 4) * 8 + (lane & 7)) * kLd + depth + (lane >> 3 & 1) * 8);
      mma(T{}, s[n], fa, fb[0], fb[1]);
      mma(T{}, s[n + 1], fa, fb[2], fb[3]);
    }
  }
}

/// acc [16, 8 kColumns] += w b: w [16, 8 kTiles] the warp's weights, rounded to T; b [8 kTiles, ..]
/// a tile, from its first column on that counts.
template <class T, int kDim, int kColumns, int kTiles>
FS_DEVICE void weigh(float (&acc)[kColumns][4], const float (&w)[kTiles][4], const T* b) {
  constexpr int kLd = FlashShape<T, kDim>::kLd;
  const int lane = threadIdx.x & 31;
  FS_UNROLL
  for (int depth = 0; depth < kTiles / 2; ++depth) {
    const uint32_t fa[4] = {pack_two<T>(w[2 * depth][0], w[2 * depth][1]),
                            pack_two<T>(w[2 * depth][2], w[2 * depth][3]),
                            pack_two<T>(w[2 * depth + 1][0], w[2 * depth + 1][1]),
                            pack_two<T>(w[2 * depth + 1][2], w[2 * depth + 1][3])};
    FS_UNROLL
    for (int n = 0; n < kColumns; n += 2) {
      uint32_t fb[4];
      load_matrix_transposed(fb, b + (depth * 16 + (lane & 15)) * kLd + n * 8 + (lane >> 4) * 8);
      mma(T{}, acc[n], fa, fb[0], fb[1]);
      mma(T{}, acc[n + 1], fa, fb[2], fb[3]);
    }
  }
}

/// Writes the warp's rows of acc, row i of the fragment (g or g + 8) times scale[i]; rows from
/// `end` on and columns past head_dim are left out.
template <class T, int kColumns>
FS_DEVICE void store_rows(const float (&acc)[kColumns][4], const float (&scale)[2], T* head, int ld,
                          int head_dim, int first, int end) {
  const int lane = threadIdx.x & 31;
  FS_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int row = first + (lane >> 2) + i * 8;
    if (row >= end) continue;
    FS_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      const int c = n * 8 + (lane & 3) * 2;
      if (c < head_dim)
        *reinterpret_cast<uint32_t*>(head + at(row, ld, c)) =
            pack_two<T>(acc[n][2 * i] * scale[i], acc[n][2 * i + 1] * scale[i]);
    }
  }
}

}  // namespace fastserve::gpu
