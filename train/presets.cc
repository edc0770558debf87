#include <fmt/format.h>

#include "train/spec.h"

namespace fastserve {
namespace {

ModelConfig gpt2_shape(int layers, int heads, int hidden, int positions) {
  ModelConfig model;
  model.architecture = Architecture::kGpt2;
  model.norm = NormKind::kLayerNorm;
  model.mlp = MlpKind::kGeluTanh;
  model.layers = layers;
  model.heads = model.kv_heads = heads;
  model.hidden_size = hidden;
  model.head_dim = hidden / heads;
  model.intermediate_size = 4 * hidden;
  model.max_positions = positions;
  model.qkv_bias = model.output_bias = model.mlp_bias = true;
  model.tied_embeddings = true;
  return model;
}

ModelConfig llama_shape(int layers, int heads, int kv_heads, int hidden, int ff, int positions) {
  ModelConfig model;
  model.layers = layers;
  model.heads = heads;
  model.kv_heads = kv_heads;
  model.hidden_size = hidden;
  model.head_dim = hidden / heads;
  model.intermediate_size = ff;
  model.max_positions = positions;
  model.rope = Rope{};
  return model;
}

/// nanoGPT's recipe for shakespeare_char on a CPU (config/train_shakespeare_char.py, README).
Preset tiny() {
  Preset preset{"tiny", {}, 0, "0.8M parameters, characters; trains in half a minute on two cores"};
  TrainSpec& spec = preset.spec;
  spec.model = gpt2_shape(4, 4, 128, 64);
  spec.block = 64;
  spec.batch = 12;
  spec.steps = 2000;
  spec.beta2 = 0.99;
  return preset;
}

Preset small() {
  Preset preset{"small", {}, 4096, "12M parameters; an hour or so on a few cores"};
  TrainSpec& spec = preset.spec;
  spec.model = gpt2_shape(6, 6, 384, 256);
  spec.block = 256;
  spec.batch = 8;
  spec.steps = 5000;
  spec.beta2 = 0.99;
  return preset;
}

Preset gpt2() {
  Preset preset{"gpt2", {}, 50257, "124M parameters, the shape of GPT-2 small"};
  TrainSpec& spec = preset.spec;
  spec.model = gpt2_shape(12, 12, 768, 1024);
  spec.block = 1024;
  spec.batch = 4;
  spec.accumulation = 8;
  spec.learning_rate = 6e-4;
  spec.min_learning_rate = 6e-5;
  return preset;
}

Preset llama_110m() {
  Preset preset{"llama-110m", {}, 32000, "134M parameters, Llama-shaped"};
  TrainSpec& spec = preset.spec;
  spec.model = llama_shape(12, 12, 12, 768, 2048, 1024);
  spec.block = 1024;
  spec.batch = 4;
  spec.accumulation = 8;
  spec.learning_rate = 5e-4;
  spec.min_learning_rate = 5e-5;
  return preset;
}

Preset llama_1b() {
  Preset preset{"llama-1b", {}, 32000, "1.1B parameters, the shape of TinyLlama"};
  TrainSpec& spec = preset.spec;
  spec.model = llama_shape(22, 32, 4, 2048, 5632, 2048);
  spec.block = 2048;
  spec.batch = 1;
  spec.accumulation = 32;
  spec.learning_rate = 4e-4;
  spec.min_learning_rate = 4e-5;
  return preset;
}

}  // namespace

std::vector<Preset> all_presets() { return {tiny(), small(), gpt2(), llama_110m(), llama_1b()}; }

Result<Preset> find_preset(const std::string& name) {
  std::string names;
  for (Preset& preset : all_presets()) {
    if (preset.name == name) return std::move(preset);
    names += (names.empty() ? "" : ", ") + preset.name;
  }
  return Error{ErrorCode::kNotFound, "there is no such preset", name, "choose one of " + names};
}

}  // namespace fastserve
