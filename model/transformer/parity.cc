#include "model/transformer/parity.h"

#include <algorithm>

#include "model/transformer/parity_reference.h"

namespace fastserve {
namespace {

/// config.v5.json, when there: the same config as transformers >= 5 spells it.
/// The files alone count here, not what generation_config.json adds.
Status check_config(const Path& directory, const ModelBundle& bundle, ParityLog& log) {
  const Path path = directory / "config.v5.json";
  const std::string quantity = "config.v5.json means the same as config.json";
  auto text = read_file(path, uint64_t{1} << 24);
  if (!text.ok()) {
    if (text.error().code != ErrorCode::kNotFound) return std::move(text).error();
    log.skip(quantity, "there is no config.v5.json");
    return {};
  }
  const std::string where = (directory / "config.json").string();
  FS_ASSIGN(const Json old_json, Json::parse(bundle.documents.at("config.json"), where));
  FS_ASSIGN(const ModelConfig old_config, ModelConfig::from_json(old_json, where));
  FS_ASSIGN(const Json new_json, Json::parse(*text, path.string()));
  FS_ASSIGN(const ModelConfig new_config, ModelConfig::from_json(new_json, path.string()));
  log.compare(quantity, new_config == old_config ? 0 : 1, 0);
  return {};
}

}  // namespace

bool ModelParity::passed() const {
  return std::all_of(checks.begin(), checks.end(), [](const ParityCheck& c) { return c.passed; });
}

Result<ModelParity> check_model(const Path& directory, Device& device,
                                const ParityOptions& options) {
  FS_ASSIGN(const ParityReference reference, ParityReference::open(directory));
  FS_ASSIGN(ModelBundle bundle, read_model_directory(directory));
  FS_ASSIGN(const ModelConfig config, bundle_config(bundle));
  ParityModel model{config, ParameterLayout(config), {}, std::move(bundle)};
  model.weights.resize(model.layout.elements());
  FS_TRY(load_parameters(model.layout, *model.bundle.tensors, model.weights));

  ModelParity parity{directory.string(), {}};
  ParityLog log(parity);
  FS_TRY(check_config(directory, model.bundle, log));
  FS_TRY(check_forward(model, reference, device, Precision::kFloat32, log));
  if (options.bf16) FS_TRY(check_forward(model, reference, device, Precision::kBFloat16, log));
  FS_TRY(check_training(model, reference, device, log));
  FS_TRY(check_greedy(model, reference, device, log));
  return parity;
}

}  // namespace fastserve
