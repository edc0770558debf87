// What a served model takes of memory, known before anything is loaded.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "model/config.h"
#include "model/decoder.h"

namespace fastserve {

struct DecoderMemory {
  uint64_t weights = 0;      ///< packed matrices, tables and vectors
  uint64_t kv = 0;           ///< the pool of KV blocks
  uint64_t activations = 0;  ///< of one step, logits included; with its scratch on a device
  uint64_t loading = 0;      ///< floats of the largest part, while it is packed
  uint64_t kv_token = 0;     ///< of the pool's, for each token it holds
  uint64_t total() const { return weights + kv + activations + loading; }
};

/// `formats`: the quantised parameters by name, as bundle_weight_formats() gives them.
/// `token_table`: the type that it is stored in, and stays in unless it is quantised.
DecoderMemory estimate_decoder_memory(const ModelConfig& config,
                                      const std::map<std::string, WeightFormat>& formats,
                                      const DecoderOptions& options,
                                      DType token_table = DType::kF32);

/// What of it lies on a device that has a memory of its own: loading passes through there in
/// pieces, and a step's kernels have scratch.
DecoderMemory on_device(DecoderMemory memory, const ModelConfig& config,
                        const DecoderOptions& options);

}  // namespace fastserve
