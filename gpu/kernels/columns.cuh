// Sums of a matrix's columns.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"

namespace fastserve::gpu {

/// Rows that one block of sum_columns takes: more of them where they are all that there are.
constexpr int kSumRows = 128, kMostSumRows = 256;
template <int kWide>
constexpr size_t kSumShared = 8 * (32 * kWide + 1) * sizeof(float);

/// out[blockIdx.y * out_ld + c] (+)= the sum of column c over the block's `run` rows.
///
/// Grid:   (columns / (32 kWide), rows / run), rounded up. Block: (32, 8). Shared: kSumShared.
/// Needs:  kWide > 1: cols and ld multiples of it, `in` on as many numbers.
/// Bits:   eight chains of every eighth row, added in order.
template <class T, int kWide>
__global__ void sum_columns(const T* in, int rows, int run, int cols, int ld, float* out,
                            int out_ld, bool accumulate) {
  FS_SHARED(float, room);
  constexpr int kLd = 32 * kWide + 1, kAtOnce = 8;
  const int own = threadIdx.x * kWide, col = blockIdx.x * 32 * kWide + own;
  const int first = blockIdx.y * run, end = rows - first < run ? rows : first + run;
  Wide<kWide> sum{};
  if (col < cols)
    for (int r = first + threadIdx.y; r < end; r += 8 * kAtOnce) {
      Wide<kWide> x[kAtOnce];
      FS_UNROLL
      for (int k = 0; k < kAtOnce; ++k)
        x[k] = r + 8 * k < end ? load_wide<kWide>(in + at(r + 8 * k, ld, col)) : Wide<kWide>{};
      FS_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        FS_UNROLL
        for (int i = 0; i < kWide; ++i) sum.v[i] += x[k].v[i];
      }
    }
  FS_UNROLL
  for (int i = 0; i < kWide; ++i) room[threadIdx.y * kLd + own + i] = sum.v[i];
  __syncthreads();
  if (threadIdx.y != 0 || col >= cols) return;
  for (int i = 0; i < kWide; ++i) {
    float all = room[own + i];
    for (int k = 1; k < 8; ++k) all += room[k * kLd + own + i];
    float* const to = out + at(blockIdx.y, out_ld, col + i);
    *to = accumulate ? *to + all : all;
  }
}

/// As many as norm_backward has blocks, so that a thread's loads are all on their way at once.
constexpr int kMostJoined = 384, kJoinLanes = 8, kJoinChains = 32;
template <int kWide>
constexpr size_t kJoinShared = size_t(kJoinChains) * (kJoinLanes * kWide + 1) * sizeof(float);

/// What the columns of partials are added to, `channels` of them each; `first` is there.
struct JoinedSums {
  float *first, *second = nullptr, *third = nullptr;
  int channels, wide;  ///< of partials: as many times channels as there are pointers
};

/// Adds the sum of each column of `partials` [parts, wide] to where it belongs.
///
/// Grid:   wide / (kJoinLanes * kWide), rounded up. Block: (kJoinLanes, kJoinChains).
/// Shared: kJoinShared. Needs: parts <= kMostJoined; kWide = 4 as norm_backward's.
/// Bits:   kJoinChains chains, each of every kJoinChains-th part, added in order.
template <int kWide>
__global__ void join_column_sums(const float* partials, int parts, JoinedSums sums) {
  FS_SHARED(float, room);
  constexpr int kLd = kJoinLanes * kWide + 1, kEach = kMostJoined / kJoinChains;
  const int own = threadIdx.x * kWide, chain = threadIdx.y;
  const int wide = sums.wide;
  const int first = blockIdx.x * kJoinLanes * kWide;
  Wide<kWide> x[kEach];
  FS_UNROLL
  for (int i = 0; i < kEach; ++i) {
    const int part = chain + i * kJoinChains;
    x[i] = part < parts && first + own < wide
               ? load_wide<kWide>(partials + at(part, wide, first + own))
               : Wide<kWide>{};
  }
  FS_UNROLL
  for (int i = 0; i < kWide; ++i) {
    float sum = x[0].v[i];
    FS_UNROLL
    for (int k = 1; k < kEach; ++k) sum += x[k].v[i];
    room[chain * kLd + own + i] = sum;
  }
  __syncthreads();
  const int column = threadIdx.y * kJoinLanes + threadIdx.x, c = first + column;
  if (column >= kJoinLanes * kWide || c >= wide) return;
  float sum = room[column];
  for (int k = 1; k < kJoinChains; ++k) sum += room[k * kLd + column];
  const int which = c / sums.channels, of = c - which * sums.channels;
  float* const to = which == 0 ? sums.first : which == 1 ? sums.second : sums.third;
  to[of] += sum;
}

}  // namespace fastserve::gpu
