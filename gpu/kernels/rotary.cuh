// RMSNorm of query and key heads, then rotate-half RoPE.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"
#include "gpu/kernels/reduce.cuh"
#include "gpu/kernels/wide.cuh"

namespace fastserve::gpu {

constexpr int kRotaryWarps = 8;
constexpr int kRotaryBackwardRows = 8;  ///< rows whose norm gradients one block sums
constexpr int kRotaryMaxDim = 256;

struct RotaryArguments {
  int heads, kv_heads, head_dim, rows;
  const void* in;
  void* out;
  const int32_t* positions;
  const float *table, *q_norm, *k_norm;
  float epsilon;
  float* stats;
  float* partials;  ///< backward: [blocks, 2 * head_dim], dq_norm then dk_norm; null: no norms
};

struct Pair {
  float a, b;
};
/// (a, b) turned by the angle whose cosine and sine are given. Spelt out: kernels that turn the
/// same head must agree.
FS_DEVICE Pair turn(Pair v, float cosine, float sine) {
  return {fmaf(v.a, cosine, -(v.b * sine)), fmaf(v.b, cosine, v.a * sine)};
}

/// Elements i and i + half of a head; of an odd head's last one the second is absent.
struct PairIndex {
  int a, b;
  bool whole;
};
FS_DEVICE PairIndex pair_of(int i, int head_dim) {
  const int half = head_dim / 2;
  if (i < half) return {i, i + half, true};
  return {head_dim - 1, head_dim - 1, false};
}

/// Grid: rows * (heads + 2 kv_heads) / kRotaryWarps, rounded up. Block: 32 * kRotaryWarps, a warp a
/// head. Bits: a head's own. In place is fine: a lane writes only the pairs it has read.
template <class T>
__global__ void rotary_forward(RotaryArguments p) {
  const int all = p.heads + 2 * p.kv_heads, normed = p.heads + p.kv_heads;
  const int item = blockIdx.x * kRotaryWarps + threadIdx.x / 32, lane = threadIdx.x & 31;
  if (item >= p.rows * all) return;
  const int row = item / all, h = item % all;
  const T* const in = static_cast<const T*>(p.in) + at(item, p.head_dim);
  T* const out = static_cast<T*>(p.out) + at(item, p.head_dim);
  const float* const weight = h < p.heads ? p.q_norm : h < normed ? p.k_norm : nullptr;
  float inverse = 1;
  if (weight) {
    float square = 0;
    for (int d = lane; d < p.head_dim; d += 32) square += as_float(in[d]) * as_float(in[d]);
    inverse = 1.0f / sqrtf(warp_reduce<Add>(square) / float(p.head_dim) + p.epsilon);
    if (lane == 0) p.stats[at(row, normed, h)] = inverse;
  }
  const float* const table =
      p.table && h < normed ? p.table + at(p.positions[row], p.head_dim) : nullptr;
  for (int i = lane; i < (p.head_dim + 1) / 2; i += 32) {
    const PairIndex at_pair = pair_of(i, p.head_dim);
    Pair v{as_float(in[at_pair.a]), as_float(in[at_pair.b])};
    if (weight) v = {v.a * inverse * weight[at_pair.a], v.b * inverse * weight[at_pair.b]};
    if (table && at_pair.whole) v = turn(v, table[i], table[p.head_dim / 2 + i]);
    out[at_pair.a] = from_float<T>(v.a);
    if (at_pair.whole) out[at_pair.b] = from_float<T>(v.b);
  }
}

constexpr int kTurnThreads = 256, kTurnHeads = 4;  ///< heads of a row that one thread turns
template <class T>
constexpr int kTurnWide = 16 / sizeof(T);  ///< neighbouring pairs of a head

/// Query and key heads without norms, turned where they lie (p.out): by the table's angles, or back
/// by them. A thread's 16 bytes of each half of some heads are on their way together, and share
/// their angles.
///
/// Grid:  rows * heads / kTurnHeads * head_dim / (2 kTurnWide), each rounded up; by kTurnThreads.
/// Needs: head_dim a multiple of 2 kTurnWide; table and out on 16 bytes; fewer than 2^32 threads.
/// Bits:  rotary_forward's and rotary_backward's.
template <class T>
__global__ void __launch_bounds__(kTurnThreads) turn_heads(RotaryArguments p, bool back) {
  constexpr int kWide = kTurnWide<T>;
  const int half = p.head_dim / 2, normed = p.heads + p.kv_heads;
  const unsigned chunks = half / kWide, groups = (normed + kTurnHeads - 1) / kTurnHeads;
  const unsigned item = blockIdx.x * kTurnThreads + threadIdx.x, rest = item / chunks;
  const int chunk = int(item % chunks) * kWide, group = int(rest % groups);
  const int row = int(rest / groups);
  if (row >= p.rows) return;
  T* const heads = static_cast<T*>(p.out) + at(row, (normed + p.kv_heads) * p.head_dim) + chunk;
  const auto head = [&](int k) { return group + k * int(groups); };
  Packed<kWide, T> a[kTurnHeads], b[kTurnHeads];
  FS_UNROLL
  for (int k = 0; k < kTurnHeads; ++k) {
    if (head(k) >= normed) continue;
    a[k] = load_packed<kWide>(heads + head(k) * p.head_dim);
    b[k] = load_packed<kWide>(heads + head(k) * p.head_dim + half);
  }
  const float* const table = p.table + at(p.positions[row], p.head_dim) + chunk;
  const Wide<kWide> cosine = load_wide<kWide>(table);
  Wide<kWide> sine = load_wide<kWide>(table + half);
  FS_UNROLL
  for (int i = 0; i < kWide; ++i) sine.v[i] = back ? -sine.v[i] : sine.v[i];
  FS_UNROLL
  for (int k = 0; k < kTurnHeads; ++k) {
    if (head(k) >= normed) continue;
    Wide<kWide> first = widen<kWide, T>(a[k]), second = widen<kWide, T>(b[k]);
    FS_UNROLL
    for (int i = 0; i < kWide; ++i) {
      const Pair v = turn({first.v[i], second.v[i]}, cosine.v[i], sine.v[i]);
      first.v[i] = v.a;
      second.v[i] = v.b;
    }
    store_wide(heads + head(k) * p.head_dim, first);
    store_wide(heads + head(k) * p.head_dim + half, second);
  }
}

/// The gradient of `out` (in p.out) becomes that of `in`.
///
/// Grid: rows / kRotaryBackwardRows, rounded up. Block: 32 * kRotaryWarps, a warp a head.
/// Shared: kRotaryWarps * 2 * head_dim floats with norms.
/// Bits: norm gradients by warp over its heads in order, then the warps in order.
template <class T>
__global__ void rotary_backward(RotaryArguments p) {
  FS_SHARED(float, shared);
  const int normed = p.heads + p.kv_heads, width = (normed + p.kv_heads) * p.head_dim;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const int first = blockIdx.x * kRotaryBackwardRows;
  const int rows = p.rows - first < kRotaryBackwardRows ? p.rows - first : kRotaryBackwardRows;
  float* const sums = shared + size_t(warp) * 2 * size_t(p.head_dim);  // each owned by one lane
  if (p.partials)
    for (int i = lane; i < (p.head_dim + 1) / 2; i += 32) {
      const PairIndex e = pair_of(i, p.head_dim);
      sums[e.a] = sums[e.b] = sums[p.head_dim + e.a] = sums[p.head_dim + e.b] = 0;
    }
  for (int item = warp; item < rows * normed; item += kRotaryWarps) {
    const int row = first + item / normed, h = item % normed;
    const size_t from = at(row, width, h * p.head_dim);
    T* const dy = static_cast<T*>(p.out) + from;
    const T* const x = static_cast<const T*>(p.in) + from;
    const float* const table = p.table ? p.table + at(p.positions[row], p.head_dim) : nullptr;
    const float* const weight = h < p.heads ? p.q_norm : p.k_norm;
    const float inverse = weight ? p.stats[at(row, normed, h)] : 1.0f;
    const auto gradient = [&](int i, const PairIndex& e) {
      const Pair v{as_float(dy[e.a]), as_float(dy[e.b])};
      return table && e.whole ? turn(v, table[i], -table[p.head_dim / 2 + i]) : v;
    };
    float mean = 0;
    if (weight) {
      float* const to = sums + (h < p.heads ? 0 : p.head_dim);
      for (int i = lane; i < (p.head_dim + 1) / 2; i += 32) {
        const PairIndex e = pair_of(i, p.head_dim);
        const Pair g = gradient(i, e);
        const float a = g.a * as_float(x[e.a]) * inverse, b = g.b * as_float(x[e.b]) * inverse;
        mean += a * weight[e.a];
        to[e.a] += a;
        if (!e.whole) continue;
        mean += b * weight[e.b];
        to[e.b] += b;
      }
      mean = warp_reduce<Add>(mean) / float(p.head_dim);
    }
    for (int i = lane; i < (p.head_dim + 1) / 2; i += 32) {
      const PairIndex e = pair_of(i, p.head_dim);
      Pair g = gradient(i, e);
      if (weight)
        g = {inverse * (g.a * weight[e.a] - as_float(x[e.a]) * inverse * mean),
             inverse * (g.b * weight[e.b] - as_float(x[e.b]) * inverse * mean)};
      dy[e.a] = from_float<T>(g.a);
      if (e.whole) dy[e.b] = from_float<T>(g.b);
    }
  }
  if (!p.partials) return;
  __syncthreads();
  for (int d = threadIdx.x; d < 2 * p.head_dim; d += blockDim.x) {
    float sum = 0;
    for (int w = 0; w < kRotaryWarps; ++w) sum += shared[at(w, 2 * p.head_dim, d)];
    p.partials[at(blockIdx.x, 2 * p.head_dim, d)] = sum;
  }
}

}  // namespace fastserve::gpu
