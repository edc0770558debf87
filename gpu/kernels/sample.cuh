// From rows of logits to tokens, without bringing the logits to the host.
#pragma once

#include "gpu/kernels/reduce.cuh"
#include "gpu/kernels/wide.cuh"
#include "gpu/sampling.h"

namespace fastserve::gpu {

constexpr int kSampleThreads = 512;

using Mass = unsigned long long;
/// Weights are whole numbers of 2^-40 of the likeliest token's: their sums are exact, so that
/// neither the order of threads nor that of atomics can change a token.
constexpr double kMassUnit = 1099511627776.0;

struct Larger {
  static FS_DEVICE Mass of(Mass a, Mass b) { return a > b ? a : b; }
};

/// Floats in their order as unsigned numbers.
FS_DEVICE uint32_t ordered(float x) {
  const uint32_t bits = float_bits(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct SampleShared {
  Mass bins[256];
  Mass room[kSampleThreads / 32];
  Mass above;
  uint32_t prefix;
};

/// What one row's threads know.
struct SampleScan {
  const float* x;
  int vocab;
  float peak, scale;
  FS_DEVICE Mass weight(float v) const {
    return Mass(double(expf((v - peak) * scale)) * kMassUnit + 0.5);
  }
};

/// The key at which the weights of the keys above it are below `target` and with its own are not,
/// among keys of at least `least`; `above`: the weight above it. All threads of the block call.
template <bool kCount>
FS_DEVICE uint32_t select_key(const SampleScan& scan, uint32_t least, Mass target, Mass& above,
                              SampleShared& shared) {
  uint32_t prefix = 0, mask = 0;
  Mass passed = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) shared.bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < scan.vocab; i += kSampleThreads) {
      const uint32_t key = ordered(scan.x[i]);
      if (key < least || (key & mask) != prefix) continue;
      atomicAdd(&shared.bins[key >> shift & 255], kCount ? Mass(1) : scan.weight(scan.x[i]));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int bin = 255;
      for (; bin > 0 && passed + shared.bins[bin] < target; --bin) passed += shared.bins[bin];
      shared.above = passed;
      shared.prefix = prefix | uint32_t(bin) << shift;
    }
    __syncthreads();
    passed = shared.above;
    prefix = shared.prefix;
    mask |= 255u << shift;
  }
  above = passed;
  return prefix;
}

/// Sum over the block before this thread's `mine`; `total` the whole. All threads call.
FS_DEVICE Mass sum_before(Mass mine, Mass& total, SampleShared& shared) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  Mass up_to = mine;
  FS_UNROLL
  for (unsigned by = 1; by < 32; by <<= 1) {
    const Mass below = __shfl_up_sync(kWholeWarp, up_to, by);
    if (lane >= int(by)) up_to += below;
  }
  if (lane == 31) shared.room[warp] = up_to;
  __syncthreads();
  Mass before = 0, all = 0;
  for (int w = 0; w < kSampleThreads / 32; ++w) {
    if (w < warp) before += shared.room[w];
    all += shared.room[w];
  }
  __syncthreads();
  total = all;
  return before + up_to - mine;
}

/// The likeliest of a row's tokens, of equal ones the lowest id, below its key; a row that is not
/// finite has a key above all others. All threads call.
constexpr uint32_t kNotFinite = ~uint32_t{0};
FS_DEVICE Mass likeliest_token(const SampleScan& scan, bool fours, SampleShared& shared) {
  Mass best = 0;
  const auto look = [&](int i, float v) {
    const uint32_t key = fabsf(v) < INFINITY ? ordered(v) : kNotFinite;
    best = Larger::of(best, Mass(key) << 32 | (0xffffffffu - uint32_t(i)));
  };
  if (fours) {
    for (int i = threadIdx.x * 4; i < scan.vocab; i += kSampleThreads * 4) {
      const Wide<4> v = load_wide<4>(scan.x + i);
      FS_UNROLL
      for (int k = 0; k < 4; ++k) look(i + k, v.v[k]);
    }
  } else {
    for (int i = threadIdx.x; i < scan.vocab; i += kSampleThreads) look(i, scan.x[i]);
  }
  return block_reduce<Larger>(best, shared.room);
}

/// tokens[r] = a token of row r, or -1 when its logits are not finite.
///
/// Grid: rows. Block: kSampleThreads. Shared: SampleShared.
/// Bits: whole numbers only, after one exponential a token.
static __global__ void sample_rows(const float* logits, int vocab, int ld, const SampleRow* rows,
                                   int32_t* tokens) {
  FS_SHARED(SampleShared, shared);
  let_next_begin();
  wait_for_previous();
  const SampleRow how = rows[blockIdx.x];
  SampleScan scan{logits + size_t(blockIdx.x) * size_t(ld), vocab, 0, 1};
  const bool fours = (vocab | ld) % 4 == 0 && reinterpret_cast<uintptr_t>(logits) % 16 == 0;
  const Mass best = likeliest_token(scan, fours, *shared);
  const bool bad = best >> 32 == kNotFinite;
  const int likeliest = int(0xffffffffu - uint32_t(best & 0xffffffffu));
  if (bad || how.temperature < 1e-6f) {
    if (threadIdx.x == 0) tokens[blockIdx.x] = bad ? -1 : likeliest;
    return;
  }
  scan.peak = scan.x[likeliest];
  scan.scale = 1.0f / how.temperature;
  uint32_t cut = 0;
  Mass above = 0, equals = ~Mass(0);  // of those equal to the cut, so many stay, by id
  if (how.top_k > 0 && how.top_k < vocab)
    cut = select_key<true>(scan, 0, Mass(how.top_k), above, *shared);
  if (how.top_p < 1.0f) {
    Mass mine = 0, total;
    for (int i = threadIdx.x; i < vocab; i += kSampleThreads)
      if (ordered(scan.x[i]) >= cut) mine += scan.weight(scan.x[i]);
    sum_before(mine, total, *shared);
    Mass target = Mass(double(how.top_p) * double(total));
    if (target == 0) target = 1;
    cut = select_key<false>(scan, cut, target, above, *shared);
    const uint32_t bits = cut & 0x80000000u ? cut & 0x7fffffffu : ~cut;
    const Mass each = scan.weight(bits_float(bits));
    if (each > 0) equals = (target - above + each - 1) / each;
  }
  if (how.min_p > 0) {
    const uint32_t least = ordered(scan.peak + logf(how.min_p) * how.temperature);
    if (least > cut) {
      cut = least;
      equals = ~Mass(0);
    }
  }
  // Ids in order: each thread has a run of them.
  const int each = (vocab + kSampleThreads - 1) / kSampleThreads, first = threadIdx.x * each;
  const int end = first + each < vocab ? first + each : vocab;
  Mass equal = 0, total;
  for (int i = first; i < end; ++i) equal += ordered(scan.x[i]) == cut;
  const Mass rank = sum_before(equal, total, *shared);
  const auto kept = [&](int i, Mass& seen) {
    const uint32_t key = ordered(scan.x[i]);
    if (key == cut) return seen++ < equals;
    return key > cut;
  };
  Mass sum = 0, seen = rank;
  for (int i = first; i < end; ++i)
    if (kept(i, seen)) sum += scan.weight(scan.x[i]);
  Mass before = sum_before(sum, total, *shared);
  const Mass target = Mass(how.uniform * double(total));
  if (target < before || target >= before + sum) return;
  seen = rank;
  for (int i = first; i < end; ++i) {
    if (!kept(i, seen)) continue;
    before += scan.weight(scan.x[i]);
    if (target >= before) continue;
    tokens[blockIdx.x] = i;
    return;
  }
}

/// DecodeFeed: tokens that the step before drew, which the host has not seen yet.
///
/// Grid: rows / blockDim.x, rounded up. Block: any.
__global__ void feed_drawn(int32_t* tokens, const int32_t* drawn, int rows) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows || tokens[row] >= 0) return;
  const int32_t token = drawn[~tokens[row]];
  tokens[row] = token < 0 ? 0 : token;
}

}  // namespace fastserve::gpu
