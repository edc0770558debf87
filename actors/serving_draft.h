// What is known of a model that is to be served before its weights are there.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "actors/serving_system.h"
#include "model/tokenizer.h"

namespace fastserve {

/// What is known of a model without its weights.
struct ServingDraft {
  ModelConfig config;
  std::map<std::string, WeightFormat> formats;
  DecoderOptions options;
  DType token_table = DType::kF32;  ///< as it is stored
  std::shared_ptr<const Tokenizer> tokenizer;
};

/// kNotFound for a model without its tokenizer.json; what config.json and that one say is wrong.
Result<ServingDraft> draft_serving(const ServingSystem::Model& model,
                                   const SchedulerLimits& limits);

/// kResourceExhausted with the figures, and with what does fit, where all of them do not. `limit`:
/// bytes; 0: what the device has to give.
Status check_serving_memory(const std::vector<ServingDraft>& drafts, const Device& device,
                            uint64_t limit);

}  // namespace fastserve
