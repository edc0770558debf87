// The statistics of attention, from a library's form into ours.
#pragma once

#include "gpu/kernels/attention.cuh"

namespace fastserve::gpu {

constexpr int kLogSumThreads = 256;

/// stats [heads, sequences * tokens, 2]: what attention.cuh says, of log_sums [sequences, heads,
/// tokens] in natural logarithms.
///
/// Grid: all log sums / kLogSumThreads, rounded up. Block: kLogSumThreads. Bits: an element's own.
static __global__ void log_sums_to_stats(const float* log_sums, int sequences, int tokens,
                                         int heads, float* stats) {
  const size_t i = size_t(blockIdx.x) * kLogSumThreads + threadIdx.x;
  if (i >= size_t(sequences) * size_t(heads) * size_t(tokens)) return;
  const size_t token = i % size_t(tokens), head = i / size_t(tokens) % size_t(heads);
  const size_t sequence = i / size_t(tokens) / size_t(heads);
  const size_t row = sequence * size_t(tokens) + token;
  stats[2 * (head * size_t(sequences) * size_t(tokens) + row)] = log_sums[i] * kLog2E;
}

}  // namespace fastserve::gpu
