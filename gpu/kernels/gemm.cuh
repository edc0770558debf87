// Matrix products on tensor cores, bfloat16 and half with float sums.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"
#include "gpu/simt/tensor_core.h"

namespace fastserve::gpu {

/// Shape of a block's work. Threads: 32 * kWarpsM * kWarpsN.
template <int M, int N, int WarpsM, int WarpsN, int Stages>
struct GemmTile {
  static constexpr int kM = M, kN = N, kK = 32, kWarpsM = WarpsM, kWarpsN = WarpsN;
  static constexpr int kStages = Stages, kThreads = 32 * WarpsM * WarpsN;
  static constexpr int kPad = 8;  // 16 bytes: eight rows of a matrix lie in different banks
};
using SmallTile = GemmTile<64, 64, 2, 2, 3>;
using LargeTile = GemmTile<128, 128, 2, 4, 4>;

/// One operand's tile in shared memory, [rows][cols + pad] as it lies in global memory: rows are
/// the operand's outer index (m or n) and cols k, or the other way round when `kDepthFirst`.
template <class T, int kOuter, bool kDepthFirst, class Tile>
struct OperandTile {
  static constexpr int kRows = kDepthFirst ? Tile::kK : kOuter;
  static constexpr int kCols = kDepthFirst ? kOuter : Tile::kK;
  static constexpr int kLd = kCols + Tile::kPad, kElements = kRows * kLd;

  /// Starts the copy of the tile whose outer index begins at `outer` and depth at `depth`. What
  /// lies past the operand becomes zero. `row_of(i)`: the operand's row of outer index i, or -1.
  template <bool kAligned, class RowOf>
  static FS_DEVICE void load(T* tile, const T* from, int ld, int outer, int outer_end, int depth,
                             int depth_end, const RowOf& row_of) {
    constexpr int kChunks = kRows * kCols / 8;
    for (int i = threadIdx.x; i < kChunks; i += Tile::kThreads) {
      const int r = i / (kCols / 8), c = i % (kCols / 8) * 8;
      const int row = kDepthFirst ? (depth + r < depth_end ? depth + r : -1) : row_of(outer + r);
      const int col = (kDepthFirst ? outer : depth) + c;
      int count = (kDepthFirst ? outer_end : depth_end) - col;
      count = row < 0 || count < 0 ? 0 : count < 8 ? count : 8;
      T* const to = tile + r * kLd + c;
      const T* const source = count ? from + at(row, ld, col) : from;
      if (kAligned) {
        copy_async(to, source, count * 2);
      } else {
        uint32_t words[4];
        for (int w = 0; w < 4; ++w) {
          const uint32_t low = 2 * w < count ? source[2 * w].bits : 0;
          const uint32_t high = 2 * w + 1 < count ? source[2 * w + 1].bits : 0;
          words[w] = low | high << 16;
        }
        *reinterpret_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
      }
    }
  }

  /// The a-fragment of rows outer..+15, depth..+15.
  static FS_DEVICE void fragment_a(uint32_t (&r)[4], const T* tile, int outer, int depth) {
    const int lane = threadIdx.x & 31;
    if (kDepthFirst)
      load_matrix_transposed(
          r, tile + (depth + (lane >> 4) * 8 + (lane & 7)) * kLd + outer + (lane >> 3 & 1) * 8);
    else
      load_matrix(r, tile + (outer + (lane & 15)) * kLd + depth + (lane >> 4) * 8);
  }
  /// The b-fragments of columns outer..+7 (r[0], r[1]) and outer+8..+15 (r[2], r[3]).
  static FS_DEVICE void fragment_b(uint32_t (&r)[4], const T* tile, int outer, int depth) {
    const int lane = threadIdx.x & 31;
    if (kDepthFirst)
      load_matrix_transposed(
          r, tile + (depth + (lane >> 3 & 1) * 8 + (lane & 7)) * kLd + outer + (lane >> 4) * 8);
    else
      load_matrix(
          r, tile + (outer + (lane >> 4) * 8 + (lane & 7)) * kLd + depth + (lane >> 3 & 1) * 8);
  }
};

template <class T, ProductKind kKind, class Tile>
struct GemmShared {
  static constexpr bool kWeight = kKind == ProductKind::kWeightGrad;
  using A = OperandTile<T, Tile::kM, kWeight, Tile>;
  using B = OperandTile<T, Tile::kN, kKind != ProductKind::kForward, Tile>;
  static constexpr size_t kBytes =
      size_t(Tile::kStages) * (A::kElements + B::kElements) * sizeof(T);
};

/// One k-slice of a tile pair: acc += a b, by depth of 16.
template <class Shared, class Tile, class T, int kRowFragments, int kColFragments>
FS_DEVICE void multiply_tiles(float (&acc)[kRowFragments][kColFragments][4], const T* a, const T* b,
                              int row, int col) {
  constexpr int kPairs = kColFragments / 2;
  FS_UNROLL
  for (int depth = 0; depth < Tile::kK; depth += 16) {
    uint32_t fa[kRowFragments][4], fb[kPairs][4];
    FS_UNROLL
    for (int i = 0; i < kRowFragments; ++i) Shared::A::fragment_a(fa[i], a, row + i * 16, depth);
    FS_UNROLL
    for (int j = 0; j < kPairs; ++j) Shared::B::fragment_b(fb[j], b, col + j * 16, depth);
    FS_UNROLL
    for (int i = 0; i < kRowFragments; ++i) {
      FS_UNROLL
      for (int j = 0; j < kPairs; ++j) {
        mma(T{}, acc[i][2 * j], fa[i], fb[j][0], fb[j][1]);
        mma(T{}, acc[i][2 * j + 1], fa[i], fb[j][2], fb[j][3]);
      }
    }
  }
}

/// A block's tile of the product, eight tiles of rows after another for the cache's sake.
template <class Tile>
FS_DEVICE void tile_of_block(const ProductArguments& p, int& row, int& col) {
  constexpr int kGroup = 8;
  const int down = (p.m + Tile::kM - 1) / Tile::kM, across = (p.n + Tile::kN - 1) / Tile::kN;
  const int tile = blockIdx.x, group = tile / (kGroup * across), first = group * kGroup;
  const int height = down - first < kGroup ? down - first : kGroup;
  row = (first + tile % (kGroup * across) % height) * Tile::kM;
  col = tile % (kGroup * across) / height * Tile::kN;
}

/// out = epilogue(a b) as matmul_engine.h says.
///
/// Grid:   tiles of rows * tiles of columns. Block: Tile::kThreads.
/// Shared: GemmShared<T, kKind, Tile>::kBytes.
/// Needs:  kAligned: a and b on 16 bytes, lda and ldb multiples of 8.
/// Bits:   each element is one chain of mma over k by 16, whatever the tile.
template <class T, ProductKind kKind, class Tile, bool kAligned>
__global__ void __launch_bounds__(Tile::kThreads) gemm(ProductArguments p) {
  using Shared = GemmShared<T, kKind, Tile>;
  constexpr int kRows = Tile::kM / Tile::kWarpsM / 16, kPairs = Tile::kN / Tile::kWarpsN / 16;
  FS_SHARED(T, shared);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int warp_row = warp / Tile::kWarpsN * (16 * kRows);
  const int warp_col = warp % Tile::kWarpsN * (16 * kPairs);
  int row, col;
  tile_of_block<Tile>(p, row, col);

  const auto stage = [&](int s) {
    return shared + s * (Shared::A::kElements + Shared::B::kElements);
  };
  const auto load = [&](int slice) {
    T* const to = stage(slice % Tile::kStages);
    Shared::A::template load<kAligned>(to, static_cast<const T*>(p.a), p.lda, row, p.m,
                                       slice * Tile::kK, p.k,
                                       [&](int i) { return i < p.m ? i : -1; });
    Shared::B::template load<kAligned>(to + Shared::A::kElements, static_cast<const T*>(p.b), p.ldb,
                                       col, p.n, slice * Tile::kK, p.k,
                                       [&](int i) { return weight_row(p, i); });
  };
  const int slices = (p.k + Tile::kK - 1) / Tile::kK;
  for (int s = 0; s < Tile::kStages - 1; ++s) {
    if (s < slices) load(s);
    copy_commit();
  }
  float acc[kRows][2 * kPairs][4] = {};
  for (int s = 0; s < slices; ++s) {
    copy_wait<Tile::kStages - 2>();
    __syncthreads();  // slice s is there for all, and nobody still reads the stage filled next
    if (s + Tile::kStages - 1 < slices) load(s + Tile::kStages - 1);
    copy_commit();
    const T* const a = stage(s % Tile::kStages);
    multiply_tiles<Shared, Tile>(acc, a, a + Shared::A::kElements, warp_row, warp_col);
  }

  const int first_row = row + warp_row + (lane >> 2), first_col = col + warp_col + (lane & 3) * 2;
  const bool gated =
      goes_with(kKind, ProductEpilogue::kSwiGlu) && p.epilogue == ProductEpilogue::kSwiGlu;
  FS_UNROLL
  for (int i = 0; i < kRows; ++i) {
    FS_UNROLL
    for (int j = 0; j < 2 * kPairs; ++j) {
      FS_UNROLL
      for (int e = 0; e < 4; e += 2) {
        const int r = first_row + i * 16 + e / 2 * 8, c = first_col + j * 8;
        if (!gated)
          finish<kKind, T>(p, r, c, acc[i][j][e], acc[i][j][e + 1]);
        else if (j % 2 == 0)
          finish_gated<T>(p, r, c / 16 * 8 + c % 8, acc[i][j][e], acc[i][j][e + 1],
                          acc[i][j + 1][e], acc[i][j + 1][e + 1]);
      }
    }
  }
}

}  // namespace fastserve::gpu
