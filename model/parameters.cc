#include "model/parameters.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/hash.h"
#include "base/rng.h"

namespace fastserve {
namespace {

constexpr size_t kAlignment = 16;  // floats

}  // namespace

/// Lays blocks one after another and the parameters inside them.
class ParameterLayout::Builder {
 public:
  explicit Builder(ParameterLayout& layout) : layout_(layout) {}

  struct Part {
    std::string name;
    int rows;
  };

  /// A matrix made of parts with the same number of columns, stacked by rows.
  Block matrix(const std::vector<Part>& parts, int cols, bool transposed = false) {
    Block block{begin(), 0, cols};
    for (const Part& part : parts) {
      std::vector<int64_t> shape = {part.rows, cols};
      if (transposed) std::swap(shape[0], shape[1]);
      add(part.name, std::move(shape), transposed, part.rows, cols, true);
      block.rows += part.rows;
    }
    return block;
  }
  /// A vector made of parts, side by side.
  Block vector(const std::vector<Part>& parts) {
    Block block{begin(), 1, 0};
    for (const Part& part : parts) {
      add(part.name, {part.rows}, false, 1, part.rows, false);
      block.cols += part.rows;
    }
    return block;
  }
  void finish() { layout_.elements_ = begin(); }

 private:
  size_t begin() { return end_ = (end_ + kAlignment - 1) / kAlignment * kAlignment; }
  void add(const std::string& name, std::vector<int64_t> shape, bool transposed, int rows, int cols,
           bool decay) {
    layout_.parameters_.push_back({name, std::move(shape), transposed, end_, rows, cols, decay});
    end_ += layout_.parameters_.back().size();
    layout_.trainable_ += layout_.parameters_.back().size();
  }

  ParameterLayout& layout_;
  size_t end_ = 0;
};

ParameterLayout::ParameterLayout(const ModelConfig& config) {
  Builder builder(*this);
  if (config.architecture == Architecture::kGpt2)
    add_gpt2(config, builder);
  else
    add_llama_family(config, builder);
  if (config.tied_embeddings)
    head_ = token_embedding_;
  else
    head_ = builder.matrix({{"lm_head.weight", config.vocab_size}}, config.hidden_size);
  builder.finish();
}

void ParameterLayout::add_gpt2(const ModelConfig& config, Builder& builder) {
  const int hidden = config.hidden_size;
  token_embedding_ = builder.matrix({{"transformer.wte.weight", config.vocab_size}}, hidden);
  position_embedding_ = builder.matrix({{"transformer.wpe.weight", config.max_positions}}, hidden);
  for (int i = 0; i < config.layers; i++) {
    const std::string at = fmt::format("transformer.h.{}.", i);
    const int width = config.mlp_width(i);
    LayerBlocks layer;
    layer.norm1 = builder.vector({{at + "ln_1.weight", hidden}});
    layer.norm1_bias = builder.vector({{at + "ln_1.bias", hidden}});
    layer.qkv = builder.matrix({{at + "attn.c_attn.weight", 3 * hidden}}, hidden, true);
    layer.qkv_bias = builder.vector({{at + "attn.c_attn.bias", 3 * hidden}});
    layer.output = builder.matrix({{at + "attn.c_proj.weight", hidden}}, hidden, true);
    layer.output_bias = builder.vector({{at + "attn.c_proj.bias", hidden}});
    layer.norm2 = builder.vector({{at + "ln_2.weight", hidden}});
    layer.norm2_bias = builder.vector({{at + "ln_2.bias", hidden}});
    layer.up = builder.matrix({{at + "mlp.c_fc.weight", width}}, hidden, true);
    layer.up_bias = builder.vector({{at + "mlp.c_fc.bias", width}});
    layer.down = builder.matrix({{at + "mlp.c_proj.weight", hidden}}, width, true);
    layer.down_bias = builder.vector({{at + "mlp.c_proj.bias", hidden}});
    layers_.push_back(layer);
  }
  final_norm_ = builder.vector({{"transformer.ln_f.weight", hidden}});
  final_norm_bias_ = builder.vector({{"transformer.ln_f.bias", hidden}});
}

void ParameterLayout::add_llama_family(const ModelConfig& config, Builder& builder) {
  const int hidden = config.hidden_size;
  const int queries = config.heads * config.head_dim, keys = config.kv_heads * config.head_dim;
  token_embedding_ = builder.matrix({{"model.embed_tokens.weight", config.vocab_size}}, hidden);
  for (int i = 0; i < config.layers; i++) {
    const std::string at = fmt::format("model.layers.{}.", i);
    const std::string attention = at + "self_attn.", mlp = at + "mlp.";
    const int width = config.mlp_width(i);
    LayerBlocks layer;
    layer.norm1 = builder.vector({{at + "input_layernorm.weight", hidden}});
    layer.qkv = builder.matrix({{attention + "q_proj.weight", queries},
                                {attention + "k_proj.weight", keys},
                                {attention + "v_proj.weight", keys}},
                               hidden);
    if (config.qkv_bias)
      layer.qkv_bias = builder.vector({{attention + "q_proj.bias", queries},
                                       {attention + "k_proj.bias", keys},
                                       {attention + "v_proj.bias", keys}});
    if (config.qk_norm) {
      layer.q_norm = builder.vector({{attention + "q_norm.weight", config.head_dim}});
      layer.k_norm = builder.vector({{attention + "k_norm.weight", config.head_dim}});
    }
    layer.output = builder.matrix({{attention + "o_proj.weight", hidden}}, queries);
    if (config.output_bias)
      layer.output_bias = builder.vector({{attention + "o_proj.bias", hidden}});
    layer.norm2 = builder.vector({{at + "post_attention_layernorm.weight", hidden}});
    layer.up = builder.matrix({{mlp + "gate_proj.weight", width}, {mlp + "up_proj.weight", width}},
                              hidden);
    if (config.mlp_bias)
      layer.up_bias =
          builder.vector({{mlp + "gate_proj.bias", width}, {mlp + "up_proj.bias", width}});
    layer.down = builder.matrix({{mlp + "down_proj.weight", hidden}}, width);
    if (config.mlp_bias) layer.down_bias = builder.vector({{mlp + "down_proj.bias", hidden}});
    layers_.push_back(layer);
  }
  final_norm_ = builder.vector({{"model.norm.weight", hidden}});
}

void initialise_parameters(const ModelConfig& config, const ParameterLayout& layout, uint64_t seed,
                           std::span<float> flat) {
  FS_CHECK(flat.size() == layout.elements());
  std::fill(flat.begin(), flat.end(), 0.0f);
  const double residual_scale = 1.0 / std::sqrt(2.0 * config.layers);
  for (const Parameter& parameter : layout.parameters()) {
    const std::span<float> values = flat.subspan(parameter.offset, parameter.size());
    if (!parameter.decay) {
      if (parameter.name.ends_with(".weight"))
        std::fill(values.begin(), values.end(), 1.0f);  // norms
      continue;
    }
    const bool residual = parameter.name.ends_with("c_proj.weight") ||
                          parameter.name.ends_with("o_proj.weight") ||
                          parameter.name.ends_with("down_proj.weight");
    const double deviation = residual ? 0.02 * residual_scale : 0.02;
    // Each parameter draws from its own stream, named by itself: its bits do not depend on the
    // others.
    Rng rng(seed, hash64(parameter.name) << 32);
    for (float& value : values) value = static_cast<float>(deviation * rng.normal());
  }
}

}  // namespace fastserve
