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

/// Inputs that a warp prepares at once, four neighbours a lane.
constexpr int kPreparedRun = 128;

FS_DEVICE const float* prepared_row(const PrepareArguments& p, int row) {
  return p.x + at(p.gather ? p.gather[row] : row, p.x_ld);
}
/// Inputs c .. c + 3 of x, or of what there is of each; zero past the end. c: a multiple of 4.
FS_DEVICE Wide<4> four_inputs(const PrepareArguments& p, const float* from, int c) {
  Wide<4> v{};
  if (!from) return v;
  if (p.fours) {
    if (c < p.in) v = load_wide<4>(from + c);
    return v;
  }
  FS_UNROLL
  for (int i = 0; i < 4; ++i) v.v[i] = c + i < p.in ? from[c + i] : 0.0f;
  return v;
}

struct RowNorm {
  float mean = 0, inverse = 1;
};

/// Four values of a row after its norm, in place; zero past the row's end.
FS_DEVICE void apply_norm(const PrepareArguments& p, const RowNorm& norm, int c, Wide<4>& x,
                          const Wide<4>& weight, const Wide<4>& bias) {
  if (!p.weight) return;
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

/// Of a row's `sums`, [runs][rows]; by one warp.
FS_DEVICE float row_sum(const float* sums, int row, int rows, int runs) {
  float sum = 0;
  for (int run = threadIdx.x & 31; run < runs; run += 32) sum += sums[run * rows + row];
  return warp_reduce<Add>(sum);
}

/// A block's shared memory for prepare_block.
struct PrepareRoom {
  float *sums, *squares;  ///< [runs][rows]
  RowNorm* norms;         ///< [rows]
  static __host__ FS_DEVICE size_t floats(int rows, int runs) {
    return size_t(rows) * (2 * size_t(runs) + 2);
  }
  FS_DEVICE PrepareRoom(float* from, int rows, int runs)
      : sums(from),
        squares(from + rows * runs),
        norms(reinterpret_cast<RowNorm*>(from + 2 * rows * runs)) {}
};

/// Rows first .. first + rows - 1 by a block of kPrepareThreads, all of which call:
/// store(row - first, run, values) is called by whole warps, for each run of kPreparedRun inputs.
/// Waits for the previous kernel; what does not depend on it is asked for before.
///
/// Bits: sums of a run are a lane's four neighbours in order and the lanes by halves, of a row
/// lane l's runs l, l + 32 ... in order and the lanes by halves.
template <class Store>
FS_DEVICE void prepare_block(const PrepareArguments& p, int first, int rows, float* memory,
                             const Store& store) {
  constexpr int kAhead = 2, kWarps = kPrepareThreads / 32;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const int runs = (p.ld + kPreparedRun - 1) / kPreparedRun, items = rows * runs;
  const PrepareRoom room(memory, rows, runs);
  const auto column = [&](int item) { return item / rows * kPreparedRun + lane * 4; };
  const auto input = [&](int item) {
    return four_inputs(p, prepared_row(p, first + item % rows), column(item));
  };
  Wide<4> weights[kAhead], biases[kAhead], x[kAhead];
  FS_UNROLL
  for (int k = 0; k < kAhead; ++k) {
    const int c = column(warp + k * kWarps);  // past the end: zeros
    weights[k] = four_inputs(p, p.weight, c);
    biases[k] = four_inputs(p, p.bias, c);
  }
  wait_for_previous();
  FS_UNROLL
  for (int k = 0; k < kAhead; ++k) {
    x[k] = {};
    if (warp + k * kWarps < items) x[k] = input(warp + k * kWarps);
  }
  /// use(item, values, its norm's weight and bias) for each of the warp's items.
  const auto each = [&](const auto& use) {
    FS_UNROLL
    for (int k = 0; k < kAhead; ++k)
      if (warp + k * kWarps < items) use(warp + k * kWarps, x[k], weights[k], biases[k]);
    for (int item = warp + kAhead * kWarps; item < items; item += kWarps) {
      const int c = column(item);
      use(item, input(item), four_inputs(p, p.weight, c), four_inputs(p, p.bias, c));
    }
  };
  if (p.weight) {
    if (p.centred) {
      each([&](int item, const Wide<4>& v, const Wide<4>&, const Wide<4>&) {
        const float sum = warp_reduce<Add>((v.v[0] + v.v[1]) + (v.v[2] + v.v[3]));
        if (lane == 0) room.sums[item] = sum;
      });
      __syncthreads();
      for (int row = warp; row < rows; row += kWarps) {
        const float mean = row_sum(room.sums, row, rows, runs) / float(p.in);
        if (lane == 0) room.norms[row].mean = mean;
      }
      __syncthreads();
    }
    each([&](int item, const Wide<4>& v, const Wide<4>&, const Wide<4>&) {
      const float mean = p.centred ? room.norms[item % rows].mean : 0.0f;
      float square = 0;
      FS_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float d = column(item) + i < p.in ? v.v[i] - mean : 0.0f;
        square = fmaf(d, d, square);
      }
      square = warp_reduce<Add>(square);
      if (lane == 0) room.squares[item] = square;
    });
    __syncthreads();
    for (int row = warp; row < rows; row += kWarps) {
      const float square = row_sum(room.squares, row, rows, runs);
      if (lane != 0) continue;
      if (!p.centred) room.norms[row].mean = 0;
      room.norms[row].inverse = 1.0f / sqrtf(square / float(p.in) + p.epsilon);
    }
    __syncthreads();
  }
  each([&](int item, Wide<4> v, const Wide<4>& weight, const Wide<4>& bias) {
    const int row = item % rows;
    apply_norm(p, p.weight ? room.norms[row] : RowNorm{}, column(item), v, weight, bias);
    store(row, item / rows, v);
  });
}

/// Rows for a kernel that follows.
///
/// Grid: rows. Block: kPrepareThreads. Shared: PrepareRoom::floats(1, runs) floats. Bits: a row's
/// own.
static __global__ void __launch_bounds__(kPrepareThreads) prepare_rows(PrepareArguments p) {
  FS_SHARED(float, memory);
  let_next_begin();
  const int row = blockIdx.x, lane = threadIdx.x & 31;
  prepare_block(p, row, 1, memory, [&](int, int run, const Wide<4>& v) {
    const int c = run * kPreparedRun + lane * 4;
    if (p.codes) {
      float scale;
      const uint32_t codes = quantise_four(v, p.group, scale);
      *reinterpret_cast<uint32_t*>(p.codes + at(row, p.ld, c)) = codes;
      if (lane % (p.group / 4) == 0) p.scales[at(c / p.group, p.scale_ld, row)] = scale;
    } else if (p.bfloats) {
      store_wide(p.bfloats + at(row, p.ld, c), v);
    } else if (p.fours) {
      if (c < p.in) store_wide(p.floats + at(row, p.ld, c), v);
    } else {
      for (int i = 0; i < 4 && c + i < p.in; ++i) p.floats[at(row, p.ld, c + i)] = v.v[i];
    }
  });
}

}  // namespace fastserve::gpu
