// What a training job starts from: settings, tokenizer, tokens, first weights.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "api/node.h"
#include "train/dataset.h"

namespace fastserve {

struct TrainMaterial {
  TrainSpec spec;  ///< complete: vocabulary and steps are known
  std::string tokenizer_json;
  std::shared_ptr<const Tokenizer> tokenizer;
  Dataset dataset;
  std::vector<float> weights;                    ///< flat; empty: fresh or the checkpoint's
  std::map<std::string, std::string> documents;  ///< of the model to publish
  std::string parent;                            ///< "name@version" when fine-tuning
};

/// The preset (or `parent`'s config) with the request's overrides, a tokenizer (the parent's, a
/// tokenizer.json beside token shards, or a new one trained on the text) and the tokenised data.
/// kInvalidArgument and kNotFound name what is wrong with the request or the data;
/// kResourceExhausted says early that this host's memory cannot do. `device_memory`: what trains
/// has memory of its own.
Result<TrainMaterial> prepare_training(const TrainRequest& request, const StoredModel* parent,
                                       bool device_memory, const Log& log);

/// For a resumed job: the data again, with the spec and tokenizer of its record and what the
/// request may change of them. kInvalidArgument names a setting that may not change.
Result<TrainMaterial> prepare_resumption(const TrainRequest& request, const TrainSpec& spec,
                                         const std::string& tokenizer_json, const Path& data);

/// Tokens of a corpus under a model's tokenizer, split as training splits them.
Result<Dataset> tokenise_corpus(const Path& data, const Tokenizer& tokenizer,
                                double validation_fraction, int block);

/// A dataset's fingerprint as a model's lineage keeps it.
std::string fingerprint_text(const Dataset& dataset);

}  // namespace fastserve
