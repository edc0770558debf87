#include "model/huggingface.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/parameters.h"
#include "model/safetensors.h"

namespace fastserve {
namespace {

constexpr uint64_t kMaxDocument = uint64_t{64} << 20;
// config.json must be there; the others are taken along when they are.
constexpr const char* kDocuments[] = {"config.json",
                                      "generation_config.json",
                                      "tokenizer.json",
                                      "tokenizer_config.json",
                                      "special_tokens_map.json",
                                      "added_tokens.json",
                                      "vocab.json",
                                      "merges.txt",
                                      "chat_template.jinja"};

/// Buffers of old checkpoints that hold no parameter: causal masks and rotary tables.
bool is_buffer(std::string_view name) {
  return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") ||
         name.ends_with(".rotary_emb.inv_freq");
}

Result<Json> parse_config(const ModelBundle& bundle) {
  const auto found = bundle.documents.find("config.json");
  const std::string where = bundle.tensors ? bundle.tensors->where() : "the model";
  if (found == bundle.documents.end())
    return Error{ErrorCode::kNotFound, "has no config.json", where,
                 "give the directory of a Hugging Face model"};
  return Json::parse(found->second, where + ": config.json");
}

}  // namespace

Result<ModelConfig> bundle_config(const ModelBundle& bundle) {
  FS_ASSIGN(const Json json, parse_config(bundle));
  const std::string where =
      (bundle.tensors ? bundle.tensors->where() : "the model") + ": config.json";
  FS_ASSIGN(ModelConfig config, ModelConfig::from_json(json, where));
  const auto generation = bundle.documents.find("generation_config.json");
  if (generation == bundle.documents.end()) return config;
  // What ends a text may be listed more fully there (Llama 3 chat models).
  FS_ASSIGN(const Json extra, Json::parse(generation->second, where + ", generation_config.json"));
  const Json* eos = extra.find_set("eos_token_id");
  if (eos == nullptr) return config;
  const Json::Array ids = eos->is_array() ? eos->as_array() : Json::Array{*eos};
  for (const Json& id : ids) {
    if (!id.is_int() || id.as_int() < 0 || id.as_int() >= config.vocab_size) continue;
    const int token = static_cast<int>(id.as_int());
    if (std::find(config.eos_tokens.begin(), config.eos_tokens.end(), token) ==
        config.eos_tokens.end())
      config.eos_tokens.push_back(token);
  }
  return config;
}

Result<std::map<std::string, WeightFormat>> bundle_weight_formats(const ModelBundle& bundle) {
  FS_ASSIGN(const Json json, parse_config(bundle));
  std::map<std::string, WeightFormat> formats;
  const Json* own = json.find_set("fastserve");
  const Json* weights = own == nullptr ? nullptr : own->find_set("weights");
  if (weights == nullptr) return formats;
  const auto bad = [&](std::string what) {
    return Error{ErrorCode::kCorrupt, "\"fastserve\".\"weights\" " + what, "config.json",
                 "compress the model again"};
  };
  if (!weights->is_object()) return bad("is not an object");
  for (const auto& [name, format_name] : weights->as_object()) {
    if (!format_name.is_string()) return bad(fmt::format("gives \"{}\" no format name", name));
    Result<WeightFormat> format = parse_weight_format(format_name.as_string());
    if (!format.ok())
      return bad(
          fmt::format("gives \"{}\" a format that is unknown: {}", name, format_name.as_string()));
    if (is_quantised(*format)) formats.emplace(name, *format);
  }
  return formats;
}

Status check_bundle(const ModelBundle& bundle) {
  FS_ASSIGN(const ModelConfig config, bundle_config(bundle));
  FS_ASSIGN(auto formats, bundle_weight_formats(bundle));
  const TensorSource& tensors = *bundle.tensors;
  const ParameterLayout layout(config);
  std::map<std::string, bool> expected;
  for (const Parameter& parameter : layout.parameters()) {
    const auto format = formats.find(parameter.name);
    if (format == formats.end()) {
      FS_TRY(find_parameter(parameter, tensors));
    } else {
      FS_TRY(
          check_quantised(tensors, parameter.name, format->second, parameter.rows, parameter.cols));
      formats.erase(format);
    }
    expected.emplace(parameter.name, true);
  }
  if (const auto head = formats.find("lm_head.weight"); head != formats.end()) {
    FS_TRY(
        check_quantised(tensors, head->first, head->second, config.vocab_size, config.hidden_size));
    formats.erase(head);
    expected.emplace("lm_head.weight", true);
  }
  if (!formats.empty())
    return Error{ErrorCode::kCorrupt,
                 fmt::format("\"fastserve\" names \"{}\", which the model does not have",
                             formats.begin()->first),
                 tensors.where(), "compress the model again"};
  for (const std::string& name : tensors.names()) {
    std::string base = name;
    for (const std::string_view ending : {".codes", ".scales"})
      if (base.ends_with(ending)) base.resize(base.size() - ending.size());
    const bool known = expected.contains(base) || expected.contains("transformer." + base) ||
                       expected.contains("model." + base) || is_buffer(base) ||
                       base == "lm_head.weight";
    if (!known)
      return Error{ErrorCode::kCorrupt,
                   fmt::format("config.json has no place for the tensor \"{}\"", name),
                   tensors.where(),
                   "config.json and the weights do not belong together, or the model has parts "
                   "that cannot be run"};
  }
  return {};
}

Result<ModelBundle> read_model_directory(const Path& directory) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error))
    return Error{ErrorCode::kNotFound, "is not a directory", directory.string(),
                 "give the directory of a Hugging Face model"};
  ModelBundle bundle;
  for (const char* name : kDocuments) {
    Result<std::string> text = read_file(directory / name, kMaxDocument);
    if (text.ok())
      bundle.documents.emplace(name, std::move(text).value());
    else if (text.error().code != ErrorCode::kNotFound)
      return std::move(text).error();
  }
  if (!bundle.documents.contains("config.json"))
    return Error{ErrorCode::kNotFound, "has no config.json", directory.string(),
                 "give the directory of a Hugging Face model"};
  // The config first: its errors say more than those of weights that were never meant to be read.
  FS_ASSIGN(const Json json,
            Json::parse(bundle.documents["config.json"], (directory / "config.json").string()));
  FS_TRY(ModelConfig::from_json(json, (directory / "config.json").string()));
  FS_ASSIGN(bundle.tensors, open_safetensors_directory(directory));
  FS_TRY(check_bundle(bundle));
  return bundle;
}

}  // namespace fastserve
