// Small random models for the tests of compression.
#pragma once

#include <memory>
#include <vector>

#include "base/rng.h"
#include "compress/neurons.h"
#include "model/huggingface.h"
#include "model/parameters.h"

namespace fastserve {

inline ModelConfig small_config(Architecture architecture, bool tied) {
  ModelConfig config;
  config.architecture = architecture;
  config.vocab_size = 50;
  config.hidden_size = 32;
  config.layers = 2;
  config.heads = config.kv_heads = 2;
  config.head_dim = 16;
  config.intermediate_size = 96;
  config.max_positions = 40;
  config.rope = Rope{};
  config.tied_embeddings = tied;
  if (architecture == Architecture::kGpt2) {
    config.rope.reset();
    config.norm = NormKind::kLayerNorm;
    config.mlp = MlpKind::kGeluTanh;
    config.qkv_bias = config.output_bias = config.mlp_bias = true;
  }
  return config;
}

/// Weights large enough that every matrix shows in the output; biases set too.
inline FlatModel small_model(Architecture architecture, bool tied) {
  FlatModel model{small_config(architecture, tied), {}};
  const ParameterLayout layout(model.config);
  model.flat.resize(layout.elements());
  Rng rng(11);
  for (const Parameter& p : layout.parameters())
    for (size_t i = 0; i < p.size(); i++) {
      const double norm = p.decay || p.name.ends_with(".bias") ? 0 : 1;
      model.flat[p.offset + i] = static_cast<float>(norm + 0.15 * rng.normal());
    }
  return model;
}

inline ModelBundle bundle_of(const FlatModel& model, DType dtype = DType::kF32) {
  ModelBundle bundle;
  bundle.documents["config.json"] = model.config.to_json().dump(2);
  bundle.documents["tokenizer.json"] = "{}";
  bundle.tensors = std::make_shared<TensorMap>(
      save_parameters(ParameterLayout(model.config), model.flat, dtype));
  return bundle;
}

inline std::vector<std::vector<int32_t>> some_tokens(int sequences, int length, uint64_t seed = 3) {
  Rng rng(seed);
  std::vector<std::vector<int32_t>> out(static_cast<size_t>(sequences));
  for (auto& sequence : out)
    for (int i = 0; i < length; i++) sequence.push_back(static_cast<int32_t>(rng.below(50)));
  return out;
}

}  // namespace fastserve
