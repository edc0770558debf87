// Any text as a config.json: refused, or a config that is valid, reads back equal and can be laid
// out.
#include <cmath>
#include <cstdint>
#include <string>

#include "model/huggingface.h"
#include "model/parameters.h"

using namespace fastserve;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto json = Json::parse(text, "input");
  if (!json.ok()) return 0;
  const auto config = ModelConfig::from_json(*json, "input");
  if (!config.ok()) {
    FS_CHECK(!config.error().what.empty() && !config.error().where.empty() &&
             !config.error().hint.empty());
    return 0;
  }
  FS_CHECK(config->validate("input").ok());
  const auto again =
      ModelConfig::from_json(*Json::parse(config->to_json().dump(), "written"), "written");
  FS_CHECK(again.ok() && *again == *config);
  if (config->rope)
    for (const double frequency : config->rope->inverse_frequencies(config->head_dim))
      FS_CHECK(!std::isnan(frequency));
  if (config->layers <= 64) {
    const ParameterLayout layout(*config);
    FS_CHECK(layout.trainable() <= layout.elements());
  }
  ModelBundle bundle;
  bundle.documents["config.json"] = text;
  (void)bundle_weight_formats(bundle).ok();
  return 0;
}
