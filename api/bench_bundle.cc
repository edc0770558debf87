#include "api/bench_models.h"
#include "base/rng.h"
#include "compress/quantisers.h"

namespace fastserve {

ModelConfig config_of(BenchModel model) {
  ModelConfig c;
  c.rope = Rope{};
  c.vocab_size = 32000;
  c.head_dim = 64;
  c.kv_heads = 4;
  c.layers = model == BenchModel::k110M ? 12 : 22;
  c.hidden_size = model == BenchModel::k110M ? 768 : 2048;
  c.heads = c.hidden_size / c.head_dim;
  c.intermediate_size = model == BenchModel::k110M ? 2048 : 5632;
  c.max_positions = 2048;
  return c;
}

Result<ModelBundle> random_bundle(const ModelConfig& config, WeightFormat format) {
  auto tensors = std::make_shared<TensorMap>("random weights");
  Json formats = Json::object({});
  Rng rng(7);
  std::vector<float> drawn(1'048'583);  // a prime: rows begin anywhere in it
  for (float& v : drawn) v = static_cast<float>(rng.uniform() - 0.5) * 0.07f;
  size_t next = 0;
  const ParameterLayout layout(config);
  for (const Parameter& p : layout.parameters()) {
    std::vector<float> values(p.size(), 1.0f);
    if (p.decay)
      for (float& v : values) v = drawn[next++ % drawn.size()];
    if (p.decay && p.name.find("embed_tokens") == std::string::npos) {
      FS_ASSIGN(const QuantisedMatrix matrix, quantise(values, p.rows, p.cols, format, p.name));
      add_quantised(*tensors, p.name, matrix);
      formats.set(p.name, weight_format_name(format));
    } else {
      tensors->add(p.name,
                   Tensor::from_floats(p.shape, values, p.decay ? DType::kBF16 : DType::kF32));
    }
  }
  Json json = config.to_json();
  json.set("fastserve", Json::object({{"weights", formats}}));
  return ModelBundle{{{"config.json", json.dump()}}, tensors};
}

}  // namespace fastserve
