// The three figures a compression is judged by.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "base/cancel.h"
#include "base/clock.h"
#include "compress/contract.h"
#include "model/decoder.h"

namespace fastserve {

struct MeasureOptions {
  WeightFormat weights = WeightFormat::kBFloat16;  ///< for matrices that the bundle holds as floats
  KvType kv = KvType::kFloat16;
  int speed_tokens = 32;       ///< decoded in each round
  int speed_rounds = 5;        ///< the median counts: other work on the machine slows some
  double speed_seconds = 0.3;  ///< as many rounds more as fill this time
  std::function<void(double)> progress;  ///< 0..1 of the held-out text; may be empty
};

/// Bytes of all tensors of a bundle, as stored.
Result<uint64_t> bundle_bytes(const ModelBundle& bundle);

/// Size; perplexity = exp(mean -log p) over all sequences of `held_out`, each read from its start
/// and cut to the model's context; tokens per second of one decoded stream. kInvalidArgument when
/// no sequence has two tokens; kCancelled.
Result<Measurement> measure_model(Device& device, const Clock& clock, const ModelBundle& bundle,
                                  std::span<const std::vector<int32_t>> held_out,
                                  const MeasureOptions& options = {},
                                  const CancelFlag* cancel = nullptr);

}  // namespace fastserve
