#include "model/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace fastserve {
namespace {

// Beyond any model that exists; below what overflows an int anywhere.
constexpr int64_t kMaxVocab = 1 << 24, kMaxWidth = 1 << 20, kMaxLayers = 4096, kMaxHeads = 1 << 14,
                  kMaxHeadDim = 1 << 12, kMaxPositions = 1 << 30;

struct ArchitectureEntry {
  Architecture architecture;
  const char* model_type;
  const char* family;  ///< how transformers begins the names of its classes
};
constexpr ArchitectureEntry kArchitectures[] = {
    {Architecture::kGpt2, "gpt2", "GPT2"},          {Architecture::kLlama, "llama", "Llama"},
    {Architecture::kMistral, "mistral", "Mistral"}, {Architecture::kQwen2, "qwen2", "Qwen2"},
    {Architecture::kQwen3, "qwen3", "Qwen3"},
};

/// Reads members of one JSON object; the first error sticks and every later read is a no-op.
class Reader {
 public:
  Reader(const Json& json, const std::string& where) : json_(json), where_(where) {}

  const Json& json() const { return json_; }
  bool has(const char* key) const { return json_.find_set(key) != nullptr; }
  bool failed() const { return error_.has_value(); }
  Error take_error() { return std::move(*error_); }
  void fail(ErrorCode code, std::string what,
            std::string hint = "correct it, or take the model's own config.json") {
    if (!error_) error_ = Error{code, std::move(what), where_, std::move(hint)};
  }
  void unsupported(std::string what) {
    fail(ErrorCode::kUnsupported, std::move(what), "models with this option cannot be run yet");
  }

  /// A size of 1..max that must be there.
  int size(const char* key, int64_t max) {
    if (!has(key)) {
      fail(ErrorCode::kCorrupt, fmt::format("has no \"{}\"", key),
           "add it, or take the model's own config.json");
      return 0;
    }
    return size_or(key, 0, max);
  }
  int size_or(const char* key, int fallback, int64_t max) {
    const int64_t value = take(key, json_.int_or(key, fallback), int64_t{fallback});
    if (has(key) && (value < 1 || value > max))
      fail(ErrorCode::kCorrupt, fmt::format("\"{}\" is {}, outside 1..{}", key, value, max));
    return failed() ? 0 : static_cast<int>(value);
  }
  double number(const char* key, double fallback) {
    return take(key, json_.double_or(key, fallback), fallback);
  }
  bool flag(const char* key, bool fallback) {
    return take(key, json_.bool_or(key, fallback), fallback);
  }
  std::string text(const char* key, const char* fallback) {
    return take(key, json_.string_or(key, fallback), std::string(fallback));
  }

 private:
  template <class T>
  T take(const char* key, Result<T> result, T fallback) {
    if (result.ok()) return std::move(result).value();
    fail(ErrorCode::kCorrupt, fmt::format("\"{}\" {}", key, result.error().what));
    return fallback;
  }

  const Json& json_;
  const std::string& where_;
  std::optional<Error> error_;
};

void read_rope(Reader& in, ModelConfig& config) {
  Rope rope;
  rope.theta = in.number("rope_theta", rope.theta);
  // transformers 5 writes rope_parameters, with rope_theta inside; 4 writes rope_scaling beside it.
  const char* key = in.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (const Json* member = in.json().find_set(key)) {
    if (!member->is_object())
      return in.fail(ErrorCode::kCorrupt, fmt::format("\"{}\" is not an object", key));
    const std::string where = key;
    Reader scaling(*member, where);
    rope.theta = scaling.number("rope_theta", rope.theta);
    const std::string type = scaling.text("rope_type", scaling.text("type", "default").c_str());
    if (type == "linear")
      rope.scaling = RopeScaling::kLinear;
    else if (type == "llama3")
      rope.scaling = RopeScaling::kLlama3;
    else if (type != "default")
      in.unsupported(
          fmt::format("the rope scaling \"{}\" is not one of default, linear, llama3", type));
    if (rope.scaling != RopeScaling::kNone) {
      if (!scaling.has("factor"))
        in.fail(ErrorCode::kCorrupt, fmt::format("\"{}\" has no \"factor\"", key));
      rope.factor = scaling.number("factor", 1.0);
    }
    if (rope.scaling == RopeScaling::kLlama3) {
      rope.low_freq_factor = scaling.number("low_freq_factor", rope.low_freq_factor);
      rope.high_freq_factor = scaling.number("high_freq_factor", rope.high_freq_factor);
      rope.original_max_positions = scaling.size("original_max_position_embeddings", kMaxPositions);
    }
    if (scaling.number("partial_rotary_factor", 1.0) != 1.0)
      in.unsupported("rotates only a part of each head");
    if (scaling.failed()) {
      const Error error = scaling.take_error();
      in.fail(error.code, fmt::format("in \"{}\": {}", key, error.what), error.hint);
    }
  }
  if (in.number("partial_rotary_factor", 1.0) != 1.0)
    in.unsupported("rotates only a part of each head");
  config.rope = rope;
}

/// Which layers see a window: all of them, none, or (unsupported) some.
void read_window(Reader& in, ModelConfig& config) {
  const bool qwen =
      config.architecture == Architecture::kQwen2 || config.architecture == Architecture::kQwen3;
  const bool mistral = config.architecture == Architecture::kMistral;
  if (!qwen && !mistral) return;
  if (qwen && !in.flag("use_sliding_window", false)) return;  // set or not, the window is off
  // Absent is not null: transformers' default for both families is 4096.
  const bool off = in.json().find("sliding_window") != nullptr && !in.has("sliding_window");
  const int window = off ? 0 : in.size_or("sliding_window", 4096, kMaxPositions);
  int windowed = config.layers;
  if (const Json* types = in.json().find_set("layer_types")) {
    windowed = 0;
    if (!types->is_array() || types->as_array().size() != static_cast<size_t>(config.layers))
      return in.fail(ErrorCode::kCorrupt, "\"layer_types\" does not list one type for each layer");
    for (const Json& type : types->as_array()) {
      if (type == Json("sliding_attention"))
        windowed++;
      else if (type != Json("full_attention"))
        return in.unsupported(
            "\"layer_types\" names a type other than full_attention and sliding_attention");
    }
  } else if (qwen) {
    windowed = config.layers -
               std::min(config.layers, static_cast<int>(in.number("max_window_layers", 28)));
  }
  if (window == 0 || windowed == 0 || window >= config.max_positions) return;
  if (windowed != config.layers) return in.unsupported("only some layers have a sliding window");
  config.sliding_window = window;
}

void read_tokens(Reader& in, ModelConfig& config) {
  // An id outside the vocabulary cannot occur; Hugging Face leaves such defaults behind.
  const auto usable = [&](const Json* id) {
    return id != nullptr && id->is_int() && id->as_int() >= 0 && id->as_int() < config.vocab_size;
  };
  const Json *bos = in.json().find_set("bos_token_id"), *pad = in.json().find_set("pad_token_id"),
             *eos = in.json().find_set("eos_token_id");
  if (usable(bos)) config.bos_token = static_cast<int>(bos->as_int());
  if (usable(pad)) config.pad_token = static_cast<int>(pad->as_int());
  if (usable(eos)) config.eos_tokens.push_back(static_cast<int>(eos->as_int()));
  if (eos != nullptr && eos->is_array())
    for (const Json& id : eos->as_array())
      if (usable(&id)) config.eos_tokens.push_back(static_cast<int>(id.as_int()));
}

void read_widths(Reader& in, ModelConfig& config) {
  const Json* own = in.json().find_set("fastserve");
  const Json* widths = own == nullptr ? nullptr : own->find_set("intermediate_sizes");
  if (widths == nullptr) return;
  if (!widths->is_array())
    return in.fail(ErrorCode::kCorrupt, "\"intermediate_sizes\" is not a list");
  for (const Json& width : widths->as_array()) {
    if (!width.is_int() || width.as_int() < 1 || width.as_int() > kMaxWidth)
      return in.fail(ErrorCode::kCorrupt,
                     fmt::format("\"intermediate_sizes\" holds {}", width.dump()));
    config.intermediate_sizes.push_back(static_cast<int>(width.as_int()));
  }
  std::vector<int>& sizes = config.intermediate_sizes;
  if (sizes.empty()) return;
  config.intermediate_size = *std::max_element(sizes.begin(), sizes.end());
  const bool alike =
      sizes.size() == static_cast<size_t>(config.layers) &&
      std::count(sizes.begin(), sizes.end(), config.intermediate_size) == config.layers;
  if (alike) sizes.clear();  // one width needs no list
}

void read_gpt2(Reader& in, ModelConfig& config) {
  config.hidden_size = in.size("n_embd", kMaxWidth);
  config.layers = in.size("n_layer", kMaxLayers);
  config.heads = config.kv_heads = in.size("n_head", kMaxHeads);
  config.head_dim = config.heads > 0 ? config.hidden_size / config.heads : 0;
  config.intermediate_size = in.size_or("n_inner", 4 * config.hidden_size, kMaxWidth);
  config.max_positions = in.size("n_positions", kMaxPositions);
  config.norm = NormKind::kLayerNorm;
  config.norm_epsilon = static_cast<float>(in.number("layer_norm_epsilon", 1e-5));
  config.mlp = MlpKind::kGeluTanh;
  config.qkv_bias = config.output_bias = config.mlp_bias = true;
  config.tied_embeddings = in.flag("tie_word_embeddings", true);
  const std::string activation = in.text("activation_function", "gelu_new");
  if (activation != "gelu_new" && activation != "gelu_pytorch_tanh" && activation != "gelu_fast")
    in.unsupported(fmt::format("the activation \"{}\" is not the tanh form of GELU", activation));
  if (!in.flag("scale_attn_weights", true)) in.unsupported("scale_attn_weights is false");
  if (in.flag("scale_attn_by_inverse_layer_idx", false))
    in.unsupported("scale_attn_by_inverse_layer_idx is true");
  if (in.flag("add_cross_attention", false)) in.unsupported("add_cross_attention is true");
}

void read_llama_family(Reader& in, ModelConfig& config) {
  const Architecture kind = config.architecture;
  config.hidden_size = in.size("hidden_size", kMaxWidth);
  config.layers = in.size("num_hidden_layers", kMaxLayers);
  config.heads = in.size("num_attention_heads", kMaxHeads);
  config.kv_heads = in.size_or("num_key_value_heads", config.heads, kMaxHeads);
  config.intermediate_size = in.size("intermediate_size", kMaxWidth);
  config.max_positions = in.size("max_position_embeddings", kMaxPositions);
  if (in.failed()) return;
  if (!in.has("head_dim") && kind != Architecture::kQwen3 && config.hidden_size % config.heads != 0)
    return in.fail(ErrorCode::kCorrupt,
                   fmt::format("hidden_size {} is not a multiple of num_attention_heads {}",
                               config.hidden_size, config.heads));
  // Qwen3's default is 128 whatever the hidden size.
  const int head_dim = kind == Architecture::kQwen3 ? 128 : config.hidden_size / config.heads;
  config.head_dim = in.size_or("head_dim", head_dim, kMaxHeadDim);
  config.norm_epsilon = static_cast<float>(in.number("rms_norm_eps", 1e-6));
  config.tied_embeddings = in.flag("tie_word_embeddings", false);
  const std::string activation = in.text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish")
    in.unsupported(fmt::format("the activation \"{}\" is not silu", activation));
  if (kind == Architecture::kLlama || kind == Architecture::kQwen3)
    config.qkv_bias = config.output_bias = in.flag("attention_bias", false);
  if (kind == Architecture::kLlama) config.mlp_bias = in.flag("mlp_bias", false);
  if (kind == Architecture::kQwen2) config.qkv_bias = true;
  config.qk_norm = kind == Architecture::kQwen3;
  read_rope(in, config);
  read_window(in, config);
}

/// "architectures" names the class that wrote the weights: one of another family, or one that is
/// not a language model, would be read as what it is not.
void check_class(Reader& in, const ArchitectureEntry& entry) {
  const Json* classes = in.json().find_set("architectures");
  if (classes == nullptr || !classes->is_array()) return;
  for (const Json& one : classes->as_array()) {
    const std::string name = one.is_string() ? one.as_string() : "";
    const bool family = name.starts_with(entry.family);
    const std::string kind = family ? name.substr(std::strlen(entry.family)) : "";
    if (kind == "ForCausalLM" || kind == "LMHeadModel" || kind == "Model") continue;
    in.fail(
        ErrorCode::kUnsupported,
        fmt::format("the model_type \"{}\" and the class \"{}\" in \"architectures\" do not agree",
                    entry.model_type, name),
        fmt::format("a language model of this type is a {}{}; correct whichever is wrong",
                    entry.family,
                    entry.architecture == Architecture::kGpt2 ? "LMHeadModel" : "ForCausalLM"));
    return;
  }
}

}  // namespace

const char* architecture_name(Architecture architecture) {
  return kArchitectures[static_cast<size_t>(architecture)].model_type;
}

Result<ModelConfig> ModelConfig::from_json(const Json& json, const std::string& where) {
  if (!json.is_object())
    return Error{ErrorCode::kCorrupt, "is not a JSON object", where, "give a model's config.json"};
  Reader in(json, where);
  ModelConfig config;
  const std::string model_type = in.text("model_type", "");
  const auto* entry = std::find_if(std::begin(kArchitectures), std::end(kArchitectures),
                                   [&](const auto& e) { return model_type == e.model_type; });
  if (!in.failed() && entry == std::end(kArchitectures))
    in.fail(model_type.empty() ? ErrorCode::kCorrupt : ErrorCode::kUnsupported,
            model_type.empty() ? "has no \"model_type\""
                               : fmt::format("the model_type \"{}\" is unknown", model_type),
            "supported are gpt2, llama, mistral, qwen2 and qwen3");
  if (in.has("quantization_config"))
    in.unsupported("has a \"quantization_config\": weights quantised by another tool are not read");
  if (in.failed()) return in.take_error();
  check_class(in, *entry);
  config.architecture = entry->architecture;
  config.vocab_size = in.size("vocab_size", kMaxVocab);
  if (config.architecture == Architecture::kGpt2)
    read_gpt2(in, config);
  else
    read_llama_family(in, config);
  read_tokens(in, config);
  read_widths(in, config);
  if (in.failed()) return in.take_error();
  Status valid = config.validate(where);
  if (!valid.ok()) {
    Error error = valid.error();
    error.code = ErrorCode::kCorrupt;
    return error;
  }
  return config;
}

namespace {

std::optional<std::string> size_problem(const ModelConfig& c) {
  const auto outside = [](int64_t value, int64_t max) { return value < 1 || value > max; };
  if (outside(c.vocab_size, kMaxVocab))
    return fmt::format("a vocabulary of {} is outside 1..{}", c.vocab_size, kMaxVocab);
  if (outside(c.hidden_size, kMaxWidth))
    return fmt::format("a hidden size of {} is outside 1..{}", c.hidden_size, kMaxWidth);
  if (outside(c.layers, kMaxLayers))
    return fmt::format("{} layers are outside 1..{}", c.layers, kMaxLayers);
  if (outside(c.heads, kMaxHeads))
    return fmt::format("{} heads are outside 1..{}", c.heads, kMaxHeads);
  if (outside(c.kv_heads, c.heads) || c.heads % c.kv_heads != 0)
    return fmt::format("{} heads cannot share {} key-value heads", c.heads, c.kv_heads);
  if (outside(c.head_dim, kMaxHeadDim))
    return fmt::format("a head dimension of {} is outside 1..{}", c.head_dim, kMaxHeadDim);
  if (int64_t{c.heads} * c.head_dim > kMaxWidth)
    return fmt::format("{} heads of {} are wider than {}", c.heads, c.head_dim, kMaxWidth);
  if (outside(c.max_positions, kMaxPositions))
    return fmt::format("a context of {} is outside 1..{}", c.max_positions, kMaxPositions);
  if (outside(c.intermediate_size, kMaxWidth))
    return fmt::format("an MLP width of {} is outside 1..{}", c.intermediate_size, kMaxWidth);
  if (!c.intermediate_sizes.empty() && c.intermediate_sizes.size() != static_cast<size_t>(c.layers))
    return fmt::format("{} MLP widths are given for {} layers", c.intermediate_sizes.size(),
                       c.layers);
  for (const int width : c.intermediate_sizes)
    if (outside(width, kMaxWidth))
      return fmt::format("an MLP width of {} is outside 1..{}", width, kMaxWidth);
  return std::nullopt;
}

std::optional<std::string> rule_problem(const ModelConfig& c) {
  if (c.architecture == Architecture::kGpt2 && c.heads * c.head_dim != c.hidden_size)
    return fmt::format("the hidden size {} is not a multiple of {} heads", c.hidden_size, c.heads);
  if (!(c.norm_epsilon > 0 && c.norm_epsilon < 1))
    return fmt::format("a norm epsilon of {} is outside (0, 1)", c.norm_epsilon);
  if (c.sliding_window < 0)
    return fmt::format("a sliding window of {} is negative", c.sliding_window);
  if (!c.rope) return std::nullopt;
  const Rope& rope = *c.rope;
  if (c.head_dim % 2 != 0)
    return fmt::format("a head dimension of {} cannot be rotated: it is odd", c.head_dim);
  if (!(rope.theta > 0 && std::isfinite(rope.theta)))
    return fmt::format("a rope theta of {} is not a positive number", rope.theta);
  if (!(rope.factor > 0 && std::isfinite(rope.factor)))
    return fmt::format("a rope factor of {} is not a positive number", rope.factor);
  if (rope.scaling == RopeScaling::kLlama3 &&
      !(rope.low_freq_factor > 0 && rope.low_freq_factor < rope.high_freq_factor &&
        std::isfinite(rope.high_freq_factor) && rope.original_max_positions > 0))
    return fmt::format("the llama3 rope factors {} and {} do not rise", rope.low_freq_factor,
                       rope.high_freq_factor);
  return std::nullopt;
}

}  // namespace

Status ModelConfig::validate(const std::string& where) const {
  std::optional<std::string> problem = size_problem(*this);
  if (!problem) problem = rule_problem(*this);
  if (!problem) return {};
  return Error{ErrorCode::kInvalidArgument, *problem, where, "correct the model's sizes"};
}

}  // namespace fastserve
