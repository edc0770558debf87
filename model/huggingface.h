// Hugging Face model directories in and out.
#pragma once

#include "base/file.h"
#include "model/config.h"
#include "model/quantised.h"
#include "model/tensor.h"

namespace fastserve {

/// Reads config.json, tokenizer.json and the other small files, opens the weights (not read yet),
/// and checks that every tensor the config needs is there with its shape.
Result<ModelBundle> read_model_directory(const Path& directory);

/// Writes a directory that transformers loads with the same logits (model.safetensors, sharded
/// above `shard_bytes`). Quantised matrices are written dequantised as bf16 unless
/// `keep_quantised`. The directory appears whole or not at all; kAlreadyExists when it is there.
Status write_model_directory(const Path& directory, const ModelBundle& bundle,
                             bool keep_quantised = false, uint64_t shard_bytes = uint64_t{5} << 30);

/// The ModelConfig of a bundle's config.json, with the further end tokens of
/// generation_config.json.
Result<ModelConfig> bundle_config(const ModelBundle& bundle);

/// The quantised matrices of a bundle by parameter name ("fastserve"."weights" of its config.json).
/// "lm_head.weight" may be among them though the embeddings are tied: the head is then its own
/// matrix.
Result<std::map<std::string, WeightFormat>> bundle_weight_formats(const ModelBundle& bundle);

/// kCorrupt unless every tensor the config needs is there with its shape (or its codes and scales),
/// and none that has no place in the model. Reads no weights.
Status check_bundle(const ModelBundle& bundle);

}  // namespace fastserve
