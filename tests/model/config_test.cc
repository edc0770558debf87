#include "model/config.h"

#include <doctest/doctest.h>

#include <cmath>

#include "base/file.h"
#include "tests/model/reference_files.h"

using namespace fastserve;

namespace {

Json load(const std::string& path) {
  const auto text = read_file(reference_directory() / "models" / path);
  REQUIRE(text.ok());
  const auto json = Json::parse(*text, path);
  REQUIRE(json.ok());
  return *json;
}

ModelConfig config_of(const std::string& path) {
  const auto config = ModelConfig::from_json(load(path), path);
  if (!config.ok()) FAIL(config.error().message());
  return *config;
}

std::string refusal(const std::string& path, const char* key, Json value) {
  Json json = load(path);
  json.set(key, std::move(value));
  const auto config = ModelConfig::from_json(json, path);
  REQUIRE(!config.ok());
  CHECK(config.error().where == path);
  return config.error().message();
}

bool says(const std::string& message, const char* words) {
  INFO(message);
  return message.find(words) != std::string::npos;
}

const char* const kModels[] = {"gpt2-tiny",    "llama-tiny", "llama3-tiny",
                               "mistral-tiny", "qwen2-tiny", "qwen3-tiny"};

}  // namespace

TEST_CASE(
    "a GPT-2 config gives learned positions, biases, tied embeddings and four times the width") {
  const ModelConfig config = config_of("gpt2-tiny/config.json");
  CHECK(config.architecture == Architecture::kGpt2);
  CHECK(!config.rope);
  CHECK(config.intermediate_size == 256);
  CHECK(config.max_positions == 128);
  CHECK((config.qkv_bias && config.output_bias && config.mlp_bias && config.tied_embeddings));
  CHECK(config.norm == NormKind::kLayerNorm);
  CHECK(config.mlp == MlpKind::kGeluTanh);
  CHECK(config.eos_tokens == std::vector<int>{508});
  CHECK(config.bos_token == 508);
}

TEST_CASE("each family's own options are read") {
  CHECK(config_of("llama-tiny/config.json").kv_heads == 2);
  CHECK(config_of("llama-tiny/config.json").norm_epsilon == 1e-5f);
  const Rope rope = *config_of("llama3-tiny/config.json").rope;
  CHECK(rope.scaling == RopeScaling::kLlama3);
  CHECK((rope.factor == 8.0 && rope.original_max_positions == 64));
  CHECK(config_of("mistral-tiny/config.json").sliding_window == 16);
  const ModelConfig qwen2 = config_of("qwen2-tiny/config.json");
  CHECK((qwen2.qkv_bias && !qwen2.output_bias && qwen2.tied_embeddings));
  const ModelConfig qwen3 = config_of("qwen3-tiny/config.json");
  CHECK((qwen3.qk_norm && qwen3.head_dim == 32 && qwen3.qkv_width() == (4 + 2 * 2) * 32));
}

TEST_CASE(
    "a Qwen window counts only when use_sliding_window is set, and not for some layers only") {
  CHECK(config_of("qwen2-tiny/config.json").sliding_window == 0);
  Json json = load("qwen2-tiny/config.json");
  json.set("use_sliding_window", true);
  CHECK(says(ModelConfig::from_json(json, "x").error().message(), "only some layers"));
  json.set("max_window_layers", 0);
  CHECK(ModelConfig::from_json(json, "x")->sliding_window == 16);
  json.set("layer_types", Json(Json::Array{"full_attention", "full_attention"}));
  CHECK(ModelConfig::from_json(json, "x")->sliding_window == 0);
}

TEST_CASE("the spelling of transformers 5 means the same as that of transformers 4") {
  int seen = 0;
  for (const std::string model : kModels) {
    if (!std::filesystem::exists(reference_directory() / "models" / model / "config.v5.json"))
      continue;
    CAPTURE(model);
    CHECK(config_of(model + "/config.v5.json") == config_of(model + "/config.json"));
    seen++;
  }
  CHECK(seen == 4);
}

TEST_CASE(
    "a written config reads back equal and uses only keys that Hugging Face's own file may hold") {
  for (const std::string model : kModels) {
    CAPTURE(model);
    const Json original = load(model + "/config.json");
    const ModelConfig config = config_of(model + "/config.json");
    const Json written = config.to_json();
    CHECK(*ModelConfig::from_json(written, "written") == config);
    for (const auto& [key, value] : original.as_object()) {
      // Set by the writer of the directory, or without meaning for the numbers.
      if (key == "torch_dtype" || key == "transformers_version" || key == "pretraining_tp")
        continue;
      CAPTURE(key);
      const bool expressed_otherwise =
          key == "n_inner" || key == "sliding_window" || key == "max_window_layers";
      if (expressed_otherwise) continue;
      REQUIRE(written.find(key) != nullptr);
      CHECK(written.find(key)->dump() == value.dump());
    }
  }
}

TEST_CASE("a pruned model's unlike widths survive the way through config.json") {
  ModelConfig config = config_of("llama-tiny/config.json");
  config.intermediate_sizes = {64, 128};
  config.intermediate_size = 128;
  CHECK(*ModelConfig::from_json(config.to_json(), "written") == config);
  config.intermediate_sizes = {64, 128, 64};
  CHECK(says(ModelConfig::from_json(config.to_json(), "written").error().message(),
             "3 MLP widths are given for 2 layers"));
}

TEST_CASE("an option that would change the numbers is refused by name") {
  const std::string llama = "llama-tiny/config.json", gpt2 = "gpt2-tiny/config.json";
  CHECK(says(refusal(llama, "hidden_act", "gelu"), "\"gelu\""));
  CHECK(says(refusal(llama, "rope_scaling", Json::object({{"rope_type", "yarn"}, {"factor", 2.0}})),
             "\"yarn\""));
  CHECK(says(refusal(llama, "rope_scaling", Json::object({{"type", "linear"}})), "no \"factor\""));
  CHECK(says(refusal(llama, "partial_rotary_factor", 0.5), "part of each head"));
  CHECK(says(refusal(llama, "quantization_config", Json::object({})), "quantization_config"));
  CHECK(says(refusal(llama, "model_type", "mamba"), "supported are gpt2"));
  for (const char* other :
       {"MistralForCausalLM", "LlamaForSequenceClassification", "LlamaMoeForCausalLM", ""})
    CHECK(says(refusal(llama, "architectures", Json(Json::Array{other})), "do not agree"));
  CHECK(says(refusal(gpt2, "activation_function", "gelu"), "tanh"));
  CHECK(says(refusal(gpt2, "scale_attn_by_inverse_layer_idx", true),
             "scale_attn_by_inverse_layer_idx"));
}

TEST_CASE("absurd sizes are refused by name instead of overflowing") {
  const std::string llama = "llama-tiny/config.json";
  for (const char* key :
       {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "vocab_size", "max_position_embeddings", "head_dim"}) {
    for (const int64_t value : {int64_t{0}, int64_t{-4}, int64_t{1} << 40, INT64_MAX})
      CHECK(says(refusal(llama, key, value), key));
    CHECK(says(refusal(llama, key, "64"), "is not a whole number"));
    CHECK(says(refusal(llama, key, 64.5), "is not a whole number"));
  }
  CHECK(says(refusal(llama, "num_key_value_heads", 3), "cannot share"));
  CHECK(says(refusal(llama, "rope_theta", 0.0), "theta"));
  CHECK(says(refusal(llama, "rms_norm_eps", -1.0), "epsilon"));
  CHECK(says(refusal(llama, "head_dim", 15), "odd"));
}

TEST_CASE("rotary frequencies follow the plain, linear and llama3 formulas") {
  Rope rope;
  CHECK(rope.inverse_frequencies(4)[1] == doctest::Approx(0.01).epsilon(1e-15));
  rope.scaling = RopeScaling::kLinear;
  rope.factor = 4.0;
  CHECK(rope.inverse_frequencies(4)[1] == doctest::Approx(0.0025).epsilon(1e-15));
  rope.scaling = RopeScaling::kLlama3;
  rope.factor = 8.0;
  rope.original_max_positions = 64;
  // Wavelengths 6.28 (kept: below 64/4), 19.87 (blended), 62.8 (blended), 198.7 (divided: above
  // 64).
  const std::vector<double> got = rope.inverse_frequencies(16);
  const double second = std::pow(10000.0, -2.0 / 16);
  const double smooth = (64.0 * second / (2 * std::acos(-1.0)) - 1.0) / 3.0;
  CHECK(got[0] == 1.0);
  CHECK(got[1] == doctest::Approx((1 - smooth) * second / 8 + smooth * second).epsilon(1e-14));
  CHECK(got[3] == doctest::Approx(std::pow(10000.0, -6.0 / 16) / 8).epsilon(1e-14));
}
