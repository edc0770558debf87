// Small random models for the tests of compression.
#pragma once

#include <algorithm>
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

/// A model as a config and its flat buffer.
struct FlatModel {
  ModelConfig config;
  std::vector<float> flat;
};

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

inline ReadParameter reader_of(const FlatModel& model) {
  return [&model](const Parameter& p) -> Result<std::vector<float>> {
    const auto values = std::span(model.flat).subspan(p.offset, p.size());
    return std::vector<float>(values.begin(), values.end());
  };
}

/// A whole model without its least important neurons.
inline Result<FlatModel> remove_neurons(const FlatModel& model, const ChannelNorms& norms,
                                        double sparsity) {
  const ParameterLayout before(model.config);
  const ReadParameter read = reader_of(model);
  FS_ASSIGN(const NeuronChoice choice, choose_neurons(model.config, before, read, norms, sparsity));
  const ParameterLayout after(choice.config);
  FlatModel out{choice.config, std::vector<float>(after.elements())};
  for (size_t i = 0; i < after.parameters().size(); i++) {
    const Parameter& from = before.parameters()[i];
    FS_ASSIGN(std::vector<float> values, read(from));
    values = without_neurons(before, choice, from, std::move(values));
    FS_CHECK(values.size() == after.parameters()[i].size());
    std::copy(values.begin(), values.end(),
              out.flat.begin() + static_cast<std::ptrdiff_t>(after.parameters()[i].offset));
  }
  return out;
}

inline Result<std::vector<double>> importance_in(const FlatModel& model, const ChannelNorms& norms,
                                                 int layer) {
  const ParameterLayout layout(model.config);
  const Parameter& down = down_projection(layout, layer);
  return neuron_importance(down, std::span(model.flat).subspan(down.offset, down.size()), norms);
}

inline std::vector<std::vector<int32_t>> some_tokens(int sequences, int length, uint64_t seed = 3) {
  Rng rng(seed);
  std::vector<std::vector<int32_t>> out(static_cast<size_t>(sequences));
  for (auto& sequence : out)
    for (int i = 0; i < length; i++) sequence.push_back(static_cast<int32_t>(rng.below(50)));
  return out;
}

}  // namespace fastserve
