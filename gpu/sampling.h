// Drawing tokens on the device.
#pragma once

#include <cstdint>
#include <span>

#include "gpu/runtime.h"
#include "gpu/workspace.h"

namespace fastserve::gpu {

/// How one row is drawn from: serve/sampler.h's order and meaning (temperature, top-k with ties,
/// top-p with equal ones by id, min-p).
struct SampleRow {
  float temperature;  ///< below 1e-6: the likeliest, of equal ones the lowest id
  int top_k;          ///< 0: all
  float top_p;        ///< 1: all
  float min_p;        ///< 0: all
  double uniform;     ///< in [0, 1)
};

/// A token for each row of logits (device, [rows.size(), ld]); -1 where they are not finite.
/// Waits for the result: a few bytes come back instead of the logits.
void sample_tokens(Runtime& runtime, Workspace& workspace, const float* logits, int vocab, int ld,
                   std::span<const SampleRow> rows, std::span<int32_t> tokens);

}  // namespace fastserve::gpu
