// What the attention kernels share: their arguments, and who sees whom.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"
#include "gpu/kernels/reduce.cuh"

namespace fastserve::gpu {

/// Rows of one sequence that one block takes.
struct AttentionTile {
  int start, end;  ///< of the sequence
  int first;       ///< of the tile
  int unused;
};

struct AttentionArguments {
  int heads, kv_heads, head_dim, rows;
  const void* qkv;  ///< [rows, width]: queries, keys, values
  void* out;        ///< [rows, heads * head_dim]
  /// [heads, rows, 2]: of each query's scores, in units of log 2: log of the sum of exponentials;
  /// the second is not used. May be null.
  float* stats;
  int window;
  float scale;
  // backward
  const void* dout;  ///< as out
  void* dqkv;        ///< as qkv
  float* delta;      ///< [heads, rows]: dout . out
};

FS_DEVICE int qkv_width(const AttentionArguments& p) {
  return (p.heads + 2 * p.kv_heads) * p.head_dim;
}
/// Where a query head and the key head that it reads lie in packed activations.
template <class T>
struct HeadColumns {
  int width, out_width;  ///< from row to row of qkv and of out
  int q, k, v, out;      ///< first columns

  FS_DEVICE HeadColumns(const AttentionArguments& p, int head, int kv)
      : width(qkv_width(p)),
        out_width(p.heads * p.head_dim),
        q(head * p.head_dim),
        k((p.heads + kv) * p.head_dim),
        v((p.heads + p.kv_heads + kv) * p.head_dim),
        out(q) {}
  FS_DEVICE HeadColumns(const AttentionArguments& p, int head)
      : HeadColumns(p, head, head / (p.heads / p.kv_heads)) {}

  FS_DEVICE const T* queries(const AttentionArguments& p) const { return of(p.qkv, q); }
  FS_DEVICE const T* keys(const AttentionArguments& p) const { return of(p.qkv, k); }
  FS_DEVICE const T* values(const AttentionArguments& p) const { return of(p.qkv, v); }
  FS_DEVICE const T* gradient(const AttentionArguments& p) const { return of(p.dout, out); }

 private:
  static FS_DEVICE const T* of(const void* rows, int column) {
    return static_cast<const T*>(rows) + column;
  }
};
/// First row that `row` sees.
FS_DEVICE int first_seen(const AttentionArguments& p, int row, int start) {
  const int first = p.window > 0 ? row - p.window + 1 : start;
  return first > start ? first : start;
}
/// One past the last row that sees `row`.
FS_DEVICE int end_seeing(const AttentionArguments& p, int row, int end) {
  const int last = p.window > 0 ? row + p.window : end;
  return last < end ? last : end;
}
FS_DEVICE bool sees(const AttentionArguments& p, int query, int key) {
  return key <= query && (p.window <= 0 || key > query - p.window);
}

/// 2^(x - peak), 0 for what is masked even when all of a row is.
FS_DEVICE float weight_of(float x, float peak) {
  return exp2f(x - (peak == -INFINITY ? 0.0f : peak));
}

constexpr int kDeltaWarps = 8;

/// delta[h][row] = dout . out of one head.
///
/// Grid: rows * heads / kDeltaWarps, rounded up. Block: 32 * kDeltaWarps, a warp a head.
template <class T>
__global__ void attention_delta(AttentionArguments p) {
  const int item = blockIdx.x * kDeltaWarps + threadIdx.x / 32, lane = threadIdx.x & 31;
  if (item >= p.rows * p.heads) return;
  const T* const out = static_cast<const T*>(p.out) + at(item, p.head_dim);
  const T* const dout = static_cast<const T*>(p.dout) + at(item, p.head_dim);
  float sum = 0;
  for (int d = lane; d < p.head_dim; d += 32) sum += as_float(out[d]) * as_float(dout[d]);
  sum = warp_reduce<Add>(sum);
  if (lane == 0) p.delta[at(item % p.heads, p.rows, item / p.heads)] = sum;
}

}  // namespace fastserve::gpu
