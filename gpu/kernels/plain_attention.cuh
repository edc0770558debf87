// Attention with ordinary multiply-adds: any head_dim up to 256 and any precision.
#pragma once

#include "gpu/kernels/attention.cuh"

namespace fastserve::gpu {

constexpr int kPlainWarps = 4;
constexpr int kPlainMaxDim = 256, kPlainSlots = kPlainMaxDim / 32;

template <class T>
FS_DEVICE float dot(const T* a, const T* b, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum = fmaf(as_float(a[i]), as_float(b[i]), sum);
  return sum;
}

/// Where a warp's query or key lies: `starts[s]` .. `starts[s + 1]` is the sequence of row r when
/// sequence_of[r] = s.
struct PlainItem {
  int row, head, start, end;
};
FS_DEVICE PlainItem plain_item(const int32_t* starts, const int32_t* sequence_of, int heads) {
  const int item = blockIdx.x * kPlainWarps + threadIdx.x / 32;
  const int row = item / heads, sequence = sequence_of[row];
  return {row, item % heads, starts[sequence], starts[sequence + 1]};
}

/// Grid: rows * heads / kPlainWarps, rounded up. Block: 32 * kPlainWarps, a warp a query.
/// Bits: keys 32 at a time from the first one seen; the lanes by halves.
template <class T>
__global__ void plain_attention_forward(AttentionArguments p, const int32_t* starts,
                                        const int32_t* sequence_of) {
  const int lane = threadIdx.x & 31, dim = p.head_dim, width = qkv_width(p);
  if (int(blockIdx.x * kPlainWarps + threadIdx.x / 32) >= p.rows * p.heads) return;
  const PlainItem me = plain_item(starts, sequence_of, p.heads);
  const HeadColumns<T> heads(p, me.head);
  const T* const q = heads.queries(p) + at(me.row, width);
  const T *const k = heads.keys(p), *const v = heads.values(p);
  float acc[kPlainSlots] = {}, peak = -INFINITY, sum = 0;
  for (int from = first_seen(p, me.row, me.start); from <= me.row; from += 32) {
    const int key = from + lane;
    const float score =
        key <= me.row ? dot(q, k + at(key, width), dim) * p.scale * kLog2E : -INFINITY;
    const float top = fmaxf(peak, warp_reduce<Max>(score));
    const float kept = weight_of(peak, top), weight = weight_of(score, top);
    peak = top;
    sum = sum * kept + warp_reduce<Add>(weight);
    for (int s = 0; s < kPlainSlots; ++s) acc[s] *= kept;
    const int count = me.row - from + 1 < 32 ? me.row - from + 1 : 32;
    for (int j = 0; j < count; ++j) {
      const float w = __shfl_sync(kWholeWarp, weight, j);
      const T* const value = v + at(from + j, width);
      for (int s = 0; s < kPlainSlots; ++s)
        if (s * 32 + lane < dim) acc[s] = fmaf(w, as_float(value[s * 32 + lane]), acc[s]);
    }
  }
  T* const out = static_cast<T*>(p.out) + at(me.row, heads.out_width, heads.out);
  for (int s = 0; s < kPlainSlots; ++s)
    if (s * 32 + lane < dim) out[s * 32 + lane] = from_float<T>(acc[s] / sum);
  if (p.stats && lane == 0) p.stats[2 * at(me.head, p.rows, me.row)] = peak + log2f(sum);
}

/// The gradient of queries. Grid, block and order as forward's.
template <class T>
__global__ void plain_attention_dq(AttentionArguments p, const int32_t* starts,
                                   const int32_t* sequence_of) {
  const int lane = threadIdx.x & 31, dim = p.head_dim, width = qkv_width(p);
  if (int(blockIdx.x * kPlainWarps + threadIdx.x / 32) >= p.rows * p.heads) return;
  const PlainItem me = plain_item(starts, sequence_of, p.heads);
  const HeadColumns<T> heads(p, me.head);
  const T* const q = heads.queries(p) + at(me.row, width);
  const T *const k = heads.keys(p), *const v = heads.values(p);
  const T* const dout = heads.gradient(p) + at(me.row, heads.out_width);
  const size_t stat = at(me.head, p.rows, me.row);
  const float all = p.stats[2 * stat], delta = p.delta[stat];
  float acc[kPlainSlots] = {};
  for (int from = first_seen(p, me.row, me.start); from <= me.row; from += 32) {
    const int key = from + lane;
    float ds = 0;
    if (key <= me.row) {
      const float weight = exp2f(dot(q, k + at(key, width), dim) * p.scale * kLog2E - all);
      ds = weight * (dot(dout, v + at(key, width), dim) - delta);
    }
    const int count = me.row - from + 1 < 32 ? me.row - from + 1 : 32;
    for (int j = 0; j < count; ++j) {
      const float d = __shfl_sync(kWholeWarp, ds, j);
      const T* const other = k + at(from + j, width);
      for (int s = 0; s < kPlainSlots; ++s)
        if (s * 32 + lane < dim) acc[s] = fmaf(d, as_float(other[s * 32 + lane]), acc[s]);
    }
  }
  T* const out = static_cast<T*>(p.dqkv) + at(me.row, width, heads.q);
  for (int s = 0; s < kPlainSlots; ++s)
    if (s * 32 + lane < dim) out[s * 32 + lane] = from_float<T>(acc[s] * p.scale);
}

/// The gradients of keys and values.
///
/// Grid: rows * kv_heads / kPlainWarps, rounded up. Block: 32 * kPlainWarps, a warp a key.
/// Bits: query heads of the group in order, queries 32 at a time from the key's own row.
template <class T>
__global__ void plain_attention_dkv(AttentionArguments p, const int32_t* starts,
                                    const int32_t* sequence_of) {
  const int lane = threadIdx.x & 31, dim = p.head_dim, width = qkv_width(p);
  if (int(blockIdx.x * kPlainWarps + threadIdx.x / 32) >= p.rows * p.kv_heads) return;
  const PlainItem me = plain_item(starts, sequence_of, p.kv_heads);
  const int group = p.heads / p.kv_heads, last = end_seeing(p, me.row, me.end);
  const HeadColumns<T> own(p, me.head * group, me.head);
  const T* const k = own.keys(p) + at(me.row, width);
  const T* const v = own.values(p) + at(me.row, width);
  float dk[kPlainSlots] = {}, dv[kPlainSlots] = {};
  for (int head = me.head * group; head < (me.head + 1) * group; ++head) {
    const HeadColumns<T> heads(p, head, me.head);
    const T *const q = heads.queries(p), *const dout = heads.gradient(p);
    for (int from = me.row; from < last; from += 32) {
      const int query = from + lane;
      float weight = 0, ds = 0;
      if (query < last) {
        const size_t stat = at(head, p.rows, query);
        weight = exp2f(dot(q + at(query, width), k, dim) * p.scale * kLog2E - p.stats[2 * stat]);
        ds = weight * (dot(dout + at(query, own.out_width), v, dim) - p.delta[stat]);
      }
      const int count = last - from < 32 ? last - from : 32;
      for (int j = 0; j < count; ++j) {
        const float w = __shfl_sync(kWholeWarp, weight, j), d = __shfl_sync(kWholeWarp, ds, j);
        const T* const other = q + at(from + j, width);
        const T* const gradient = dout + at(from + j, own.out_width);
        for (int s = 0; s < kPlainSlots; ++s) {
          const int e = s * 32 + lane;
          if (e >= dim) continue;
          dv[s] = fmaf(w, as_float(gradient[e]), dv[s]);
          dk[s] = fmaf(d, as_float(other[e]), dk[s]);
        }
      }
    }
  }
  T* const out = static_cast<T*>(p.dqkv) + at(me.row, width);
  for (int s = 0; s < kPlainSlots; ++s) {
    const int e = s * 32 + lane;
    if (e >= dim) continue;
    out[own.k + e] = from_float<T>(dk[s] * p.scale);
    out[own.v + e] = from_float<T>(dv[s]);
  }
}

}  // namespace fastserve::gpu
