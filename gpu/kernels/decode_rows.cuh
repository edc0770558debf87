// Activations on their way into an inference product: gathered, normalised, and in the form in
// which the weights want to meet them. A kernel of its own makes them for many rows; for a few each
// block of the product does. Both call what is here, so that a row's bits are the same.
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
  bool fours;  ///< in, x_ld and a row of `floats` are multiples of 4, and all of these on 16 bytes
  float epsilon;
  float* floats;      ///< [rows, ld], or null
  BFloat16* bfloats;  ///< [rows, ld], zero past `in`, or null
  int8_t* codes;      ///< [rows, ld], zero past `in`, or null; then
  float* scales;      ///< [ld / group, scale_ld]: a group of every row, then the next
  int ld, group;      ///< group: 32 or 128
  int scale_ld;
};

/// Inputs that a warp prepares at once, four neighbours a lane; the block's warps take turns.
constexpr int kPreparedRun = 128;

FS_DEVICE const float* prepared_row(const PrepareArguments& p, int row) {
  return p.x + at(p.gather ? p.gather[row] : row, p.x_ld);
}
/// Inputs c .. c + 3, zero past the end. c: a multiple of 4.
template <bool kFours>
FS_DEVICE Wide<4> four_inputs(const PrepareArguments& p, const float* from, int c) {
  Wide<4> v{};
  if constexpr (kFours) {
    if (c < p.in) v = load_wide<4>(from + c);
  } else {
    FS_UNROLL
    for (int i = 0; i < 4; ++i)
      if (c + i < p.in) v.v[i] = from[c + i];
  }
  return v;
}

struct RowNorm {
  float mean, inverse;
};

/// Four values of a row after its norm, in place; zero past the row's end.
FS_DEVICE void apply_norm(const PrepareArguments& p, const RowNorm& norm, int c, Wide<4>& x,
                          const Wide<4>& weight, const Wide<4>& bias) {
  FS_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float v = (x.v[i] - norm.mean) * norm.inverse;
    x.v[i] = p.bias ? fmaf(v, weight.v[i], bias.v[i]) : v * weight.v[i];
    if (c + i >= p.in) x.v[i] = 0;
  }
}

/// Codes of a lane's four values: in each run of `group` values s = absmax / 127, code = x / s to
/// nearest even. A value that is not finite makes s so, and with it every output of the row. All
/// lanes call.
FS_DEVICE uint32_t quantise_four(const Wide<4>& x, int group, float& scale) {
  uint32_t top = 0;  // of magnitudes, as integers: a NaN is larger than everything
  FS_UNROLL
  for (int i = 0; i < 4; ++i) top = Max::of(top, float_bits(x.v[i]) & 0x7fffffffu);
  FS_UNROLL
  for (int by = 1; by < 32; by <<= 1)
    if (by < group / 4) top = Max::of(top, __shfl_xor_sync(kWholeWarp, top, by));
  const float peak = bits_float(top);
  const float by = peak > 1e-30f ? 127.0f / peak : 0.0f;
  scale = peak / 127.0f;
  uint32_t codes = 0;
  FS_UNROLL
  for (int i = 0; i < 4; ++i) codes |= (uint32_t(__float2int_rn(x.v[i] * by)) & 0xffu) << (8 * i);
  return codes;
}

/// A block's shared memory for prepare_block.
struct PrepareRoom {
  float *sums, *squares;  ///< [rows][warps]
  static constexpr int kWarps = kPrepareThreads / 32;
  static __host__ FS_DEVICE size_t floats(int rows) { return size_t(rows) * 2 * kWarps; }
  FS_DEVICE PrepareRoom(float* from, int rows) : sums(from), squares(from + rows * kWarps) {}
};

/// Sum over a row of term(value, sum so far), a warp's share of it. Several loads are on their way
/// at once; what is unrolled is kept small, because a kernel of a few microseconds waits for its
/// code.
template <bool kFours, class Term>
FS_DEVICE float sum_share(const PrepareArguments& p, const float* x, const Term& term) {
  constexpr int kAtOnce = 4, kStep = kPrepareThreads * 4;
  float sums[4] = {};
  FS_NO_UNROLL
  for (int base = threadIdx.x * 4; base < p.in; base += kAtOnce * kStep) {
    Wide<4> v[kAtOnce];
    FS_UNROLL
    for (int k = 0; k < kAtOnce; ++k) v[k] = four_inputs<kFours>(p, x, base + k * kStep);
    FS_UNROLL
    for (int k = 0; k < kAtOnce; ++k) {
      FS_UNROLL
      for (int i = 0; i < 4; ++i)
        if (base + k * kStep + (kFours ? 0 : i) < p.in) sums[i] = term(v[k].v[i], sums[i]);
    }
  }
  return warp_reduce<Add>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}
FS_DEVICE float sum_of_shares(const float* shares) {
  float sum = 0;
  FS_UNROLL
  for (int w = 0; w < PrepareRoom::kWarps; ++w) sum += shares[w];
  return sum;
}

/// Rows first .. first + rows - 1 by a block of kPrepareThreads, all of which call:
/// store(row - first, run, values) is called by whole warps, for each run of kPreparedRun inputs.
/// wait() stands between what does not depend on earlier work and what does.
///
/// Bits: thread t takes inputs 4t .. 4t + 3 of every 1024, a chain for each of the four; then
/// those, the lanes by halves, and the warps in order.
template <bool kFours, class Wait, class Store>
FS_DEVICE void prepare_block(const PrepareArguments& p, int first, int rows, float* memory,
                             const Wait& wait, const Store& store) {
  constexpr int kAtOnce = 4, kStep = kPrepareThreads * 4;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const int end = p.floats ? p.in : p.ld;
  const PrepareRoom room(memory, rows);
  Wide<4> early[kAtOnce] = {};  // the first of the norm's weights
  if (p.weight) {
    FS_UNROLL
    for (int k = 0; k < kAtOnce; ++k)
      early[k] = four_inputs<kFours>(p, p.weight, threadIdx.x * 4 + k * kStep);
    for (int c = threadIdx.x * 32; c < p.in; c += kPrepareThreads * 32) {
      if (c >= kAtOnce * kStep) prefetch_line(p.weight + c);
      if (p.bias) prefetch_line(p.bias + c);
    }
  }
  wait();
  if (p.weight) {
    if (p.centred) {
      FS_NO_UNROLL
      for (int row = 0; row < rows; ++row) {
        const float sum = sum_share<kFours>(p, prepared_row(p, first + row),
                                            [](float v, float before) { return before + v; });
        if (lane == 0) room.sums[row * room.kWarps + warp] = sum;
      }
      __syncthreads();
    }
    FS_NO_UNROLL
    for (int row = 0; row < rows; ++row) {
      const float mean =
          p.centred ? sum_of_shares(room.sums + row * room.kWarps) / float(p.in) : 0.0f;
      const float square =
          sum_share<kFours>(p, prepared_row(p, first + row), [&](float v, float before) {
            const float d = v - mean;
            return fmaf(d, d, before);
          });
      if (lane == 0) room.squares[row * room.kWarps + warp] = square;
    }
    __syncthreads();
  }
  FS_NO_UNROLL
  for (int row = 0; row < rows; ++row) {
    const float* const x = prepared_row(p, first + row);
    RowNorm norm{0, 1};
    if (p.weight) {
      if (p.centred) norm.mean = sum_of_shares(room.sums + row * room.kWarps) / float(p.in);
      const float square = sum_of_shares(room.squares + row * room.kWarps);
      norm.inverse = 1.0f / sqrtf(square / float(p.in) + p.epsilon);
    }
    FS_NO_UNROLL
    for (int base = threadIdx.x * 4; base < end; base += kAtOnce * kStep) {
      Wide<4> v[kAtOnce], weight[kAtOnce];
      FS_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        v[k] = four_inputs<kFours>(p, x, base + k * kStep);
        weight[k] = early[k];
        if (p.weight && base >= kAtOnce * kStep)
          weight[k] = four_inputs<kFours>(p, p.weight, base + k * kStep);
      }
      FS_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        const int c = base + k * kStep;
        if (c >= end) continue;  // of codes: a warp as a whole
        if (p.weight)
          apply_norm(p, norm, c, v[k], weight[k],
                     p.bias ? four_inputs<kFours>(p, p.bias, c) : Wide<4>{});
        store(row, c / kPreparedRun, v[k]);
      }
    }
  }
}

/// Rows for a kernel that follows.
///
/// Grid: rows. Block: kPrepareThreads. Shared: PrepareRoom::floats(1) floats. Needs:
/// kFours: as PrepareArguments::fours says. Bits: a row's own.
template <bool kFours>
__global__ void __launch_bounds__(kPrepareThreads) prepare_rows(PrepareArguments p) {
  FS_SHARED(float, memory);
  let_next_begin();
  const int row = blockIdx.x, lane = threadIdx.x & 31;
  prepare_block<kFours>(p, row, 1, memory, ChainWait{}, [&](int, int run, const Wide<4>& v) {
    const int c = run * kPreparedRun + lane * 4;
    if (p.codes) {
      float scale;
      const uint32_t codes = quantise_four(v, p.group, scale);
      *reinterpret_cast<uint32_t*>(p.codes + at(row, p.ld, c)) = codes;
      if (lane % (p.group / 4) == 0) p.scales[at(c / p.group, p.scale_ld, row)] = scale;
    } else if (p.bfloats) {
      store_wide(p.bfloats + at(row, p.ld, c), v);
    } else if (kFours) {
      store_wide(p.floats + at(row, p.ld, c), v);
    } else {
      for (int i = 0; i < 4 && c + i < p.in; ++i) p.floats[at(row, p.ld, c + i)] = v.v[i];
    }
  });
}

}  // namespace fastserve::gpu
