// Small models with seeded weights, of every architecture and of odd shapes.
#pragma once

#include <vector>

#include "base/rng.h"
#include "model/huggingface.h"
#include "model/parameters.h"
#include "model/trainable.h"

namespace fastserve {

/// Two layers, 5 + 8 wide MLPs that differ, GQA where the architecture has it.
inline ModelConfig tiny_config(Architecture architecture) {
  ModelConfig c;
  c.architecture = architecture;
  c.vocab_size = 37;
  c.hidden_size = 24;
  c.layers = 2;
  c.heads = 4;
  c.kv_heads = architecture == Architecture::kGpt2 ? 4 : 2;
  c.head_dim = architecture == Architecture::kQwen3 ? 10 : 6;
  c.intermediate_size = 20;
  c.intermediate_sizes = {20, 13};
  c.max_positions = 40;
  c.norm_epsilon = 1e-5f;
  if (architecture == Architecture::kGpt2) {
    c.norm = NormKind::kLayerNorm;
    c.mlp = MlpKind::kGeluTanh;
    c.qkv_bias = c.output_bias = c.mlp_bias = true;
  } else {
    c.rope = Rope{};
  }
  c.sliding_window = architecture == Architecture::kMistral ? 7 : 0;
  c.qkv_bias = c.qkv_bias || architecture == Architecture::kQwen2;
  c.qk_norm = architecture == Architecture::kQwen3;
  c.tied_embeddings = architecture == Architecture::kGpt2 || architecture == Architecture::kQwen2;
  return c;
}

inline constexpr Architecture kArchitectures[] = {Architecture::kGpt2, Architecture::kLlama,
                                                  Architecture::kMistral, Architecture::kQwen2,
                                                  Architecture::kQwen3};

/// Every parameter away from its starting value, so that each matters.
inline std::vector<float> tiny_weights(const ParameterLayout& layout, uint64_t seed) {
  std::vector<float> flat(layout.elements());
  for (const Parameter& p : layout.parameters()) {
    Rng rng(seed, p.offset);
    for (size_t i = 0; i < p.size(); ++i) {
      const bool norm =
          p.name.find("norm") != std::string::npos || p.name.find("ln_") != std::string::npos;
      const double mean = norm && p.name.ends_with(".weight") ? 1.0 : 0.0;
      flat[p.offset + i] = static_cast<float>(mean + 0.25 * rng.normal());
    }
  }
  return flat;
}

inline ModelBundle tiny_bundle(const ModelConfig& config, const ParameterLayout& layout,
                               std::span<const float> flat, DType dtype = DType::kF32) {
  ModelBundle bundle;
  bundle.documents["config.json"] = config.to_json().dump();
  bundle.tensors = std::make_shared<TensorMap>(save_parameters(layout, flat, dtype));
  return bundle;
}

/// Sequences of the given lengths; every fifth target is not counted.
inline Microbatch tiny_batch(const ModelConfig& config, std::vector<int> lengths, uint64_t seed) {
  Rng rng(seed);
  Microbatch batch;
  batch.starts.push_back(0);
  for (const int length : lengths) {
    for (int t = 0; t < length; ++t) {
      const auto token = [&] {
        return static_cast<int32_t>(rng.below(static_cast<uint64_t>(config.vocab_size)));
      };
      batch.tokens.push_back(token());
      batch.targets.push_back(batch.tokens.size() % 5 == 0 ? -1 : token());
    }
    batch.starts.push_back(static_cast<int32_t>(batch.tokens.size()));
  }
  return batch;
}

/// Weights on a device, and a pass over them; what is looked at is copied to the host.
struct TinyTrainer {
  TinyTrainer(Device& on, const ModelConfig& c, Precision precision, int max_rows)
      : device(on), config(c), layout(c), ops(device.make_train_ops(precision)) {
    weights = TrainWeights::create(device, *ops, config, layout).value();
    load(tiny_weights(layout, 7));
    pass = TrainPass::create(device, *ops, config, layout, max_rows).value();
    memory = device.allocate(layout.elements() * sizeof(float)).value();
  }
  void load(std::span<const float> flat) {
    device.copy_in(weights->masters().data(), flat.data(), flat.size_bytes());
    weights->refresh_all(*ops);
  }
  /// The gradient buffer begins as rubbish: run() must overwrite all of it.
  std::vector<float> gradient(const Microbatch& batch, float scale = 1) {
    std::vector<float> host(layout.elements(), 12345.0f);
    device.copy_in(memory->data(), host.data(), host.size() * sizeof(float));
    loss = pass->run(*weights, batch, scale, grad());
    return host_copy(grad());
  }
  float* grad() { return static_cast<float*>(memory->data()); }
  /// As many floats as the model has parameters.
  std::vector<float> host_copy(const float* from) {
    std::vector<float> host(layout.elements());
    device.copy_out(host.data(), from, host.size() * sizeof(float));
    return host;
  }

  Device& device;
  ModelConfig config;
  ParameterLayout layout;
  std::unique_ptr<TrainOps> ops;
  std::unique_ptr<TrainWeights> weights;
  std::unique_ptr<TrainPass> pass;
  std::unique_ptr<DeviceBuffer> memory;  ///< the latest gradient
  double loss = 0;
};

}  // namespace fastserve
