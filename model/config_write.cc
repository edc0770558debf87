// The config.json of a ModelConfig, in the spelling that transformers 4 and 5 both read.
#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "model/config.h"

namespace fastserve {
namespace {

const char* class_name(Architecture architecture) {
  switch (architecture) {
    case Architecture::kGpt2:
      return "GPT2LMHeadModel";
    case Architecture::kLlama:
      return "LlamaForCausalLM";
    case Architecture::kMistral:
      return "MistralForCausalLM";
    case Architecture::kQwen2:
      return "Qwen2ForCausalLM";
    case Architecture::kQwen3:
      return "Qwen3ForCausalLM";
  }
  return "";
}

/// The float's shortest decimal as a double, so that 1e-5f is written 1e-05 and not 9.99999974e-06.
double shortest(float value) { return std::stod(fmt::format("{}", value)); }

/// transformers has one width for all layers.
int common_width(const ModelConfig& config) {
  return config.intermediate_sizes.empty() ? config.intermediate_size
                                           : *std::max_element(config.intermediate_sizes.begin(),
                                                               config.intermediate_sizes.end());
}

Json number_or_null(std::optional<int> number) {
  if (!number) return nullptr;
  return *number;
}

void write_gpt2(const ModelConfig& config, Json& out) {
  out.set("activation_function", "gelu_new");
  out.set("n_embd", config.hidden_size);
  out.set("n_layer", config.layers);
  out.set("n_head", config.heads);
  out.set("n_inner", common_width(config));
  out.set("n_positions", config.max_positions);
  out.set("n_ctx", config.max_positions);
  out.set("layer_norm_epsilon", shortest(config.norm_epsilon));
  out.set("attn_pdrop", 0.0);
  out.set("embd_pdrop", 0.0);
  out.set("resid_pdrop", 0.0);
  out.set("scale_attn_weights", true);
}

Json rope_scaling(const Rope& rope) {
  if (rope.scaling == RopeScaling::kNone) return nullptr;
  Json out =
      Json::object({{"rope_type", rope.scaling == RopeScaling::kLinear ? "linear" : "llama3"},
                    {"factor", rope.factor}});
  if (rope.scaling == RopeScaling::kLlama3) {
    out.set("low_freq_factor", rope.low_freq_factor);
    out.set("high_freq_factor", rope.high_freq_factor);
    out.set("original_max_position_embeddings", rope.original_max_positions);
  }
  return out;
}

void write_llama_family(const ModelConfig& config, Json& out) {
  const Architecture kind = config.architecture;
  out.set("hidden_size", config.hidden_size);
  out.set("intermediate_size", common_width(config));
  out.set("num_hidden_layers", config.layers);
  out.set("num_attention_heads", config.heads);
  out.set("num_key_value_heads", config.kv_heads);
  out.set("head_dim", config.head_dim);
  out.set("hidden_act", "silu");
  out.set("max_position_embeddings", config.max_positions);
  out.set("rms_norm_eps", shortest(config.norm_epsilon));
  out.set("attention_dropout", 0.0);
  out.set("rope_theta", config.rope ? config.rope->theta : Rope{}.theta);
  if (config.rope) out.set("rope_scaling", rope_scaling(*config.rope));
  if (kind == Architecture::kLlama || kind == Architecture::kQwen3)
    out.set("attention_bias", config.qkv_bias);
  if (kind == Architecture::kLlama) out.set("mlp_bias", config.mlp_bias);
  std::optional<int> window;
  if (config.sliding_window > 0) window = config.sliding_window;
  if (kind == Architecture::kMistral) out.set("sliding_window", number_or_null(window));
  if (kind == Architecture::kQwen2 || kind == Architecture::kQwen3) {
    out.set("use_sliding_window", config.sliding_window > 0);
    out.set("sliding_window", number_or_null(window));
    out.set("max_window_layers", config.sliding_window > 0 ? 0 : config.layers);
  }
}

}  // namespace

Json ModelConfig::to_json() const {
  Json out = Json::object({{"architectures", Json(Json::Array{class_name(architecture)})},
                           {"model_type", architecture_name(architecture)},
                           {"vocab_size", vocab_size}});
  if (architecture == Architecture::kGpt2)
    write_gpt2(*this, out);
  else
    write_llama_family(*this, out);
  out.set("initializer_range", 0.02);
  out.set("use_cache", true);
  out.set("tie_word_embeddings", tied_embeddings);
  out.set("bos_token_id", number_or_null(bos_token));
  out.set("pad_token_id", number_or_null(pad_token));
  if (eos_tokens.size() == 1)
    out.set("eos_token_id", eos_tokens.front());
  else
    out.set("eos_token_id", eos_tokens.empty() ? Json() : Json::array_of(eos_tokens));
  if (!intermediate_sizes.empty())
    out.set("fastserve",
            Json::object({{"intermediate_sizes", Json::array_of(intermediate_sizes)}}));
  return out;
}

}  // namespace fastserve
