// The statistics of attention, from a library's form into ours and back.
#pragma once

#include "gpu/kernels/attention.cuh"

namespace fastserve::gpu {

constexpr int kLogSumThreads = 256;
constexpr float kLogE2 = 0.693147180559945f;

/// Where in stats [heads, sequences * tokens, 2] element i of [sequences, heads, tokens] is.
FS_DEVICE size_t place_in_stats(size_t i, int sequences, int tokens, int heads) {
  const size_t token = i % size_t(tokens), head = i / size_t(tokens) % size_t(heads);
  const size_t sequence = i / size_t(tokens) / size_t(heads);
  return 2 * ((head * size_t(sequences) + sequence) * size_t(tokens) + token);
}

/// stats [heads, sequences * tokens, 2]: what attention.cuh says, of log_sums [sequences, heads,
/// tokens] in natural logarithms.
///
/// Grid: all log sums / kLogSumThreads, rounded up. Block: kLogSumThreads. Bits: an element's own.
static __global__ void log_sums_to_stats(const float* log_sums, int sequences, int tokens,
                                         int heads, float* stats) {
  const size_t i = size_t(blockIdx.x) * kLogSumThreads + threadIdx.x;
  if (i >= size_t(sequences) * size_t(heads) * size_t(tokens)) return;
  stats[place_in_stats(i, sequences, tokens, heads)] = log_sums[i] * kLog2E;
}

/// The reverse. Grid, block and bits: as above.
static __global__ void stats_to_log_sums(const float* stats, int sequences, int tokens, int heads,
                                         float* log_sums) {
  const size_t i = size_t(blockIdx.x) * kLogSumThreads + threadIdx.x;
  if (i >= size_t(sequences) * size_t(heads) * size_t(tokens)) return;
  log_sums[i] = stats[place_in_stats(i, sequences, tokens, heads)] * kLogE2;
}

}  // namespace fastserve::gpu
