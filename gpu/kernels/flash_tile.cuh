// Tiles of rows of one head, and their products by warp: what flash attention is made of.
//
// Each warp of a block owns kHigh times 16 of the tile's rows, so that a fragment of what they are
// multiplied with serves kHigh products. What a block walks over comes Shape::kStep rows at a time
// through a ring of Shape::kStages. kDim is head_dim rounded up to a shape of the kernel; what lies
// past head_dim is zero in shared memory and not written.
#pragma once

#include "gpu/kernels/attention.cuh"
#include "gpu/simt/tensor_core.h"

namespace fastserve::gpu {

/// What every shape says; a row in shared memory has 16 bytes more, so that rows of a matrix lie in
/// different banks.
template <int kDim, int kWarps, int kHighOf, int kStepOf, int kStagesOf>
struct FlashShape {
  static constexpr int kLd = kDim + 8;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kHigh = kHighOf;              ///< fragments of 16 rows, of a warp
  static constexpr int kRows = 16 * kWarps * kHigh;  ///< that a block owns
  static constexpr int kStep = kStepOf;              ///< rows that it meets at a time
  static constexpr int kStages = kStagesOf;          ///< of those in shared memory
  static constexpr int kTiles = kStep / 8;           ///< columns of scores, in fragments
  static constexpr int kOwn = kRows * kLd, kOther = kStep * kLd;  ///< elements of a tile
};

/// Starts the copy of rows first .. first + kRows - 1 of a head; zero from `end` on.
template <int kRows, int kDim, int kThreads, class T>
FS_DEVICE void load_rows(T* tile, const T* head, int ld, int head_dim, int first, int end) {
  constexpr int kChunks = kRows * (kDim / 8);
  static_assert(kChunks % kThreads == 0);
  FS_UNROLL
  for (int done = 0; done < kChunks; done += kThreads) {
    const int i = done + threadIdx.x, r = i / (kDim / 8), c = i % (kDim / 8) * 8;
    const bool there = first + r < end && c < head_dim;
    copy_async(tile + r * (kDim + 8) + c, head + (there ? at(first + r, ld, c) : 0),
               there ? 16 : 0);
  }
}

/// The keys that a tile of queries meets, and their values.
template <class T, int kDim, class Shape>
class KeyRing {
 public:
  FS_DEVICE KeyRing(const AttentionArguments& p, const AttentionTile& me,
                    const HeadColumns<T>& heads, T* ring)
      : p_(p), me_(me), heads_(heads), ring_(ring) {
    const int last = me.first + Shape::kRows < me.end ? me.first + Shape::kRows : me.end;
    begin_ =
        me.start + (first_seen(p, me.first, me.start) - me.start) / Shape::kStep * Shape::kStep;
    steps_ = (last - begin_ + Shape::kStep - 1) / Shape::kStep;
  }
  FS_DEVICE int steps() const { return steps_; }
  FS_DEVICE int first(int step) const { return begin_ + step * Shape::kStep; }
  FS_DEVICE const T* keys(int step) const { return at_step(step); }
  FS_DEVICE const T* values(int step) const { return at_step(step) + Shape::kOther; }
  FS_DEVICE void load(int step) const {
    if (step >= steps_) return;
    T* const to = at_step(step);
    load_rows<Shape::kStep, kDim, Shape::kThreads>(to, heads_.keys(p_), heads_.width, p_.head_dim,
                                                   first(step), me_.end);
    load_rows<Shape::kStep, kDim, Shape::kThreads>(to + Shape::kOther, heads_.values(p_),
                                                   heads_.width, p_.head_dim, first(step), me_.end);
  }

 private:
  FS_DEVICE T* at_step(int step) const { return ring_ + step % Shape::kStages * 2 * Shape::kOther; }
  const AttentionArguments& p_;
  const AttentionTile& me_;
  const HeadColumns<T>& heads_;
  T* ring_;
  int begin_, steps_;
};

/// A warp's rows of a tile as fragments: read from shared memory each time, or held in registers.
template <class T, int kDim, int kHigh, bool kHeld>
class OwnRows {
 public:
  /// `rows`: the warp's first one, of a tile that is there.
  FS_DEVICE explicit OwnRows(const T* rows)
      : rows_(rows + (threadIdx.x & 15) * (kDim + 8) + (threadIdx.x >> 4 & 1) * 8) {
    if constexpr (kHeld) {
      FS_UNROLL
      for (int d = 0; d < kDim / 16; ++d) {
        FS_UNROLL
        for (int m = 0; m < kHigh; ++m)
          load_matrix(held_[d][m], rows_ + m * 16 * (kDim + 8) + d * 16);
      }
    }
  }
  /// Columns 16 d .. 16 d + 15.
  FS_DEVICE void fragments(uint32_t (&a)[kHigh][4], int d) const {
    FS_UNROLL
    for (int m = 0; m < kHigh; ++m) {
      if constexpr (kHeld) {
        FS_UNROLL
        for (int i = 0; i < 4; ++i) a[m][i] = held_[d][m][i];
      } else {
        load_matrix(a[m], rows_ + m * 16 * (kDim + 8) + d * 16);
      }
    }
  }

 private:
  const T* rows_;
  uint32_t held_[kHeld ? kDim / 16 : 1][kHigh][4];
};

/// s [16 kHigh, 8 kTiles] = a b^T over kDim: the warp's own rows, and all of a tile.
template <class T, int kDim, int kHigh, bool kHeld, int kTiles>
FS_DEVICE void scores(float (&s)[kHigh][kTiles][4], const OwnRows<T, kDim, kHigh, kHeld>& own,
                      const T* b) {
  constexpr int kLd = kDim + 8;
  const int lane = threadIdx.x & 31;
  const T* const mine = b + ((lane >> 4) * 8 + (lane & 7)) * kLd + (lane >> 3 & 1) * 8;
  FS_UNROLL
  for (int m = 0; m < kHigh; ++m) {
    FS_UNROLL
    for (int n = 0; n < kTiles; ++n) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0;
  }
  FS_UNROLL
  for (int d = 0; d < kDim / 16; ++d) {
    uint32_t fa[kHigh][4];
    own.fragments(fa, d);
    FS_UNROLL
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t fb[4];
      load_matrix(fb, mine + n * 8 * kLd + d * 16);
      FS_UNROLL
      for (int m = 0; m < kHigh; ++m) {
        mma(T{}, s[m][n], fa[m], fb[0], fb[1]);
        mma(T{}, s[m][n + 1], fa[m], fb[2], fb[3]);
      }
    }
  }
}

/// acc [16 kHigh, 8 kColumns] += w b: w [16 kHigh, 8 kTiles] the warp's weights, rounded to T; b
/// [8 kTiles, ..] a tile, from its first column on that counts.
template <class T, int kDim, int kHigh, int kColumns, int kTiles>
FS_DEVICE void weigh(float (&acc)[kHigh][kColumns][4], const float (&w)[kHigh][kTiles][4],
                     const T* b) {
  constexpr int kLd = kDim + 8;
  const int lane = threadIdx.x & 31;
  const T* const mine = b + (lane & 15) * kLd + (lane >> 4) * 8;
  FS_UNROLL
  for (int d = 0; d < kTiles / 2; ++d) {
    uint32_t fa[kHigh][4];
    FS_UNROLL
    for (int m = 0; m < kHigh; ++m) {
      FS_UNROLL
      for (int i = 0; i < 4; ++i)
        fa[m][i] = pack_two<T>(w[m][2 * d + i / 2][i % 2 * 2], w[m][2 * d + i / 2][i % 2 * 2 + 1]);
    }
    FS_UNROLL
    for (int n = 0; n < kColumns; n += 2) {
      uint32_t fb[4];
      load_matrix_transposed(fb, mine + d * 16 * kLd + n * 8);
      FS_UNROLL
      for (int m = 0; m < kHigh; ++m) {
        mma(T{}, acc[m][n], fa[m], fb[0], fb[1]);
        mma(T{}, acc[m][n + 1], fa[m], fb[2], fb[3]);
      }
    }
  }
}

/// How much of a warp's scores counts, for queries and keys from first to last.
enum class Sight { kNone, kSome, kAll };
FS_DEVICE Sight sight(const AttentionArguments& p, int first_query, int last_query, int first_key,
                      int last_key) {
  if (last_query < first_key || (p.window > 0 && first_query - last_key >= p.window))
    return Sight::kNone;
  const bool all = first_query >= last_key && (p.window <= 0 || last_query - first_key < p.window);
  return all ? Sight::kAll : Sight::kSome;
}

/// x = `value` where not sees(row, column): places in a tile whose rows begin with the warp's.
template <int kHigh, int kTiles, class Sees>
FS_DEVICE void mask(float (&x)[kHigh][kTiles][4], float value, const Sees& sees) {
  const int lane = threadIdx.x & 31;
  FS_UNROLL
  for (int m = 0; m < kHigh; ++m) {
    FS_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      FS_UNROLL
      for (int e = 0; e < 4; ++e)
        if (!sees(m * 16 + (lane >> 2) + (e >> 1) * 8, n * 8 + (lane & 3) * 2 + (e & 1)))
          x[m][n][e] = value;
    }
  }
}

/// Writes 16 rows of acc, row i of the fragment (g or g + 8) times scale[i]; rows from `end` on and
/// columns past head_dim are left out.
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
