// One description spans GPT-2, Llama 2/3, Mistral, Qwen2 and Qwen3.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace fastserve {

enum class Architecture { kGpt2, kLlama, kMistral, kQwen2, kQwen3 };
enum class NormKind { kLayerNorm, kRmsNorm };
/// kGeluTanh: h = gelu(x W1 + b1). kSwiGlu: h = silu(x Wgate) * (x Wup).
enum class MlpKind { kGeluTanh, kSwiGlu };

enum class RopeScaling { kNone, kLinear, kLlama3 };

/// Rotary position embedding, rotate-half form (Su et al. 2021, as in Hugging Face).
struct Rope {
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;        ///< llama3 scaling only
  double high_freq_factor = 4.0;       ///< llama3 scaling only
  int original_max_positions = 8192;   ///< llama3 scaling only
  bool operator==(const Rope&) const = default;

  /// Inverse frequencies, head_dim/2 of them, with the scaling applied.
  std::vector<double> inverse_frequencies(int head_dim) const;
};

/// The shape of a decoder-only transformer.
struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  int vocab_size = 0;
  int hidden_size = 0;
  int layers = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int intermediate_size = 0;  ///< neurons of the MLP (of each layer, unless `intermediate_sizes`)
  /// Structured pruning may leave layers with unlike widths; empty = all `intermediate_size`.
  std::vector<int> intermediate_sizes;
  int max_positions = 0;      ///< longest context
  NormKind norm = NormKind::kRmsNorm;
  float norm_epsilon = 1e-5f;
  MlpKind mlp = MlpKind::kSwiGlu;
  std::optional<Rope> rope;    ///< absent: learned absolute positions (GPT-2)
  int sliding_window = 0;      ///< W > 0: position i sees i-W < j <= i; 0: all j <= i
  bool qkv_bias = false;
  bool output_bias = false;    ///< bias of the attention's output projection
  bool mlp_bias = false;
  bool qk_norm = false;        ///< RMSNorm over head_dim of each query and key head (Qwen3)
  bool tied_embeddings = false;
  std::optional<int> bos_token, pad_token;
  std::vector<int> eos_tokens;

  int mlp_width(int layer) const {
    return intermediate_sizes.empty() ? intermediate_size : intermediate_sizes[static_cast<size_t>(layer)];
  }
  /// Columns of the fused projection: queries, then keys, then values.
  int qkv_width() const { return (heads + 2 * kv_heads) * head_dim; }

  /// From a Hugging Face config.json, in the spelling of transformers 4 or 5. kUnsupported for an
  /// unknown model_type or option; kCorrupt for absent or contradictory sizes. `where` names the file.
  static Result<ModelConfig> from_json(const Json& json, const std::string& where);
  /// A config.json that transformers loads.
  Json to_json() const;
  /// kInvalidArgument when sizes contradict each other or exceed sane limits.
  Status validate(const std::string& where) const;

  bool operator==(const ModelConfig&) const = default;
};

const char* architecture_name(Architecture architecture);

}  // namespace fastserve
