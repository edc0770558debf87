// Drawing tokens on the device.
#pragma once

#include <cstdint>
#include <span>

#include "gpu/runtime.h"
#include "gpu/workspace.h"
#include "model/decode_ops.h"

namespace fastserve::gpu {

using SampleRow = TokenDraw;

/// Starts drawing a token for each row of logits [rows, ld]; -1 where they are not finite. Pointers
/// are the device's.
void start_sampling(Runtime& runtime, const float* logits, int rows, int vocab, int ld,
                    const SampleRow* how, int32_t* tokens);

/// DecodeFeed.
void feed_tokens(Runtime& runtime, int32_t* tokens, const int32_t* drawn, int rows);

/// A token for each row of logits (device, [rows.size(), ld]); -1 where they are not finite.
/// Waits for the result: a few bytes come back instead of the logits.
void sample_tokens(Runtime& runtime, Workspace& workspace, const float* logits, int vocab, int ld,
                   std::span<const SampleRow> rows, std::span<int32_t> tokens);

}  // namespace fastserve::gpu
