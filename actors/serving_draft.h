// What is known of a model that is to be served before its weights are there.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "actors/serving_system.h"
#include "model/tokenizer.h"
#include "serve/model_turns.h"

namespace fastserve {

/// What is known of a model without its weights.
struct ServingDraft {
  std::string name;  ///< "poems@3"
  ModelConfig config;
  std::map<std::string, WeightFormat> formats;
  DecoderOptions options;
  DType token_table = DType::kF32;  ///< as it is stored
  std::shared_ptr<const Tokenizer> tokenizer;
};

/// kNotFound for a model without its tokenizer.json; what config.json and that one say is wrong.
/// `turns`: its weights may be wanted much later. They are not read, but their names, types and
/// shapes are held against config.json.
Result<ServingDraft> draft_serving(const ServingSystem::Model& model, const SchedulerLimits& limits,
                                   bool turns = false);

/// kResourceExhausted with the figures, and with what does fit, where all of them do not. `limit`:
/// bytes; 0: what the device has to give.
Status check_serving_memory(const std::vector<ServingDraft>& drafts, const Device& device,
                            uint64_t limit);

/// The same where models need not fit together, but each by itself.
Result<ModelTurns> turns_in_memory(const std::vector<ServingDraft>& drafts, const Device& device,
                                   uint64_t limit, Nanoseconds turn);

}  // namespace fastserve
