#include "model/parameters.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/huggingface.h"
#include "model/safetensors.h"
#include "tests/model/reference_files.h"

using namespace fastserve;

namespace {

ModelConfig small(Architecture architecture) {
  ModelConfig config;
  config.architecture = architecture;
  config.vocab_size = 11;
  config.hidden_size = 6;
  config.layers = 2;
  config.heads = 3;
  config.kv_heads = 1;
  config.head_dim = 2;
  config.intermediate_size = 5;
  config.max_positions = 7;
  config.rope = Rope{};
  if (architecture == Architecture::kQwen3) config.qk_norm = true;
  if (architecture == Architecture::kGpt2) {
    config.kv_heads = 3;
    config.rope.reset();
    config.norm = NormKind::kLayerNorm;
    config.mlp = MlpKind::kGeluTanh;
    config.qkv_bias = config.output_bias = config.mlp_bias = config.tied_embeddings = true;
  }
  return config;
}

std::vector<float> counted(const ParameterLayout& layout) {
  std::vector<float> flat(layout.elements());
  for (const Parameter& p : layout.parameters())
    for (size_t i = 0; i < p.size(); i++) flat[p.offset + i] = static_cast<float>(p.offset + i);
  return flat;
}

const Parameter& named(const ParameterLayout& layout, const std::string& name) {
  const auto& all = layout.parameters();
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const Parameter& p) { return p.name == name; });
  REQUIRE(found != all.end());
  return *found;
}

}  // namespace

TEST_CASE("blocks begin on multiples of 16 floats and cover every parameter once, in order") {
  for (const Architecture architecture :
       {Architecture::kGpt2, Architecture::kLlama, Architecture::kQwen3}) {
    const ParameterLayout layout(small(architecture));
    size_t end = 0, total = 0;
    for (const Parameter& p : layout.parameters()) {
      CHECK(p.offset >= end);
      CHECK(p.offset - end < 16);
      end = p.offset + p.size();
      total += p.size();
    }
    CHECK(total == layout.trainable());
    CHECK(layout.elements() % 16 == 0);
    CHECK(layout.elements() >= end);
    for (int i = 0; i < 2; i++) {
      const LayerBlocks& l = layout.layer(i);
      for (const Block& b : {l.norm1, l.qkv, l.output, l.norm2, l.up, l.down, layout.head()}) {
        CHECK(b.offset % 16 == 0);
        CHECK(b.size() > 0);
      }
    }
  }
}

TEST_CASE("queries, keys and values are one matrix, and so are gate and up") {
  const ModelConfig config = small(Architecture::kQwen3);
  const ParameterLayout layout(config);
  const LayerBlocks& layer = layout.layer(1);
  CHECK(layer.qkv.rows == config.qkv_width());
  CHECK(named(layout, "model.layers.1.self_attn.q_proj.weight").offset == layer.qkv.offset);
  CHECK(named(layout, "model.layers.1.self_attn.k_proj.weight").offset == layer.qkv.offset + 36);
  CHECK(named(layout, "model.layers.1.self_attn.v_proj.weight").offset == layer.qkv.offset + 48);
  CHECK(layer.up.rows == 10);
  CHECK(named(layout, "model.layers.1.mlp.up_proj.weight").offset == layer.up.offset + 30);
  CHECK(layer.q_norm.cols == 2);
  CHECK(layer.qkv_bias.empty());
  CHECK(layout.head().offset != layout.token_embedding().offset);
  CHECK(layout.position_embedding().empty());
}

TEST_CASE("GPT-2's [in, out] matrices lie as [out, in], and go back as they came") {
  const ParameterLayout layout(small(Architecture::kGpt2));
  CHECK(layout.head().offset == layout.token_embedding().offset);
  const std::vector<float> flat = counted(layout);
  const TensorMap saved = save_parameters(layout, flat, DType::kF32);
  const Parameter& up = named(layout, "transformer.h.0.mlp.c_fc.weight");
  const TensorView stored = *saved.tensor(up.name);
  CHECK(stored.shape == std::vector<int64_t>{6, 5});
  CHECK(stored.to_floats()[1] == flat[up.offset + 6]);  // [in 0, out 1] is [out 1, in 0]
  std::vector<float> back(layout.elements(), -1.0f);
  REQUIRE(load_parameters(layout, saved, back).ok());
  CHECK(back == flat);  // the gaps are zero again too
}

TEST_CASE("names without their prefix and causal-mask buffers of old files are accepted") {
  const ParameterLayout layout(small(Architecture::kGpt2));
  const std::vector<float> flat = counted(layout);
  const TensorMap saved = save_parameters(layout, flat, DType::kF32);
  TensorMap hub("hub");
  for (const std::string& name : saved.names()) {
    const TensorView view = *saved.tensor(name);
    hub.add(name.substr(std::strlen("transformer.")),
            Tensor::from_floats(view.shape, view.to_floats()));
  }
  hub.add("h.0.attn.bias", Tensor::from_floats({1, 1, 2, 2}, std::vector<float>{1, 0, 1, 1}));
  std::vector<float> back(layout.elements());
  REQUIRE(load_parameters(layout, hub, back).ok());
  CHECK(back == flat);
}

TEST_CASE("a missing tensor and a wrong shape are named, with both shapes") {
  const ParameterLayout layout(small(Architecture::kLlama));
  std::vector<float> flat = counted(layout);
  TensorMap saved = save_parameters(layout, flat, DType::kF32);
  saved.add("model.norm.weight", Tensor::from_floats({2, 3}, std::vector<float>(6)));
  const Error shape = load_parameters(layout, saved, flat).error();
  CHECK(shape.code == ErrorCode::kCorrupt);
  CHECK(shape.what ==
        "the tensor \"model.norm.weight\" has the shape [2, 3], but config.json asks for [6]");
  saved.add("model.norm.weight", Tensor{DType::kI32, {6}, std::vector<std::byte>(24)});
  CHECK(load_parameters(layout, saved, flat).error().code == ErrorCode::kUnsupported);
  const Error missing = load_parameters(layout, TensorMap("here"), flat).error();
  CHECK(missing.code == ErrorCode::kCorrupt);
  CHECK(missing.message().find("here: the tensor \"model.embed_tokens.weight\" is missing") == 0);
}

TEST_CASE(
    "fresh weights depend on the seed alone: norms one, biases zero, residual projections "
    "smaller") {
  ModelConfig config = small(Architecture::kGpt2);
  config.hidden_size = 66;
  config.head_dim = 22;
  config.intermediate_size = 300;
  const ParameterLayout layout(config);
  std::vector<float> one(layout.elements()), two(layout.elements()), other(layout.elements());
  initialise_parameters(config, layout, 7, one);
  initialise_parameters(config, layout, 7, two);
  initialise_parameters(config, layout, 8, other);
  CHECK(one == two);
  CHECK(one != other);
  const auto deviation = [&](const std::string& name) {
    const Parameter& p = named(layout, name);
    double squares = 0;
    for (size_t i = 0; i < p.size(); i++) squares += double{one[p.offset + i]} * one[p.offset + i];
    return std::sqrt(squares / static_cast<double>(p.size()));
  };
  CHECK(deviation("transformer.h.0.mlp.c_fc.weight") == doctest::Approx(0.02).epsilon(0.03));
  CHECK(deviation("transformer.h.0.mlp.c_proj.weight") == doctest::Approx(0.01).epsilon(0.03));
  CHECK(deviation("transformer.h.1.ln_2.weight") == 1.0);
  CHECK(deviation("transformer.h.1.mlp.c_fc.bias") == 0.0);
  CHECK(one[named(layout, "transformer.h.0.mlp.c_fc.weight").offset] !=
        one[named(layout, "transformer.h.1.mlp.c_fc.weight").offset]);
}

TEST_CASE("every reference model loads, and saves to the tensors it came from") {
  int seen = 0;
  for (const auto& entry : std::filesystem::directory_iterator(reference_directory() / "models")) {
    const bool sharded = std::filesystem::exists(entry.path() / "model.safetensors.index.json");
    if (!sharded && !std::filesystem::exists(entry.path() / "model.safetensors")) continue;
    const std::string model = entry.path().filename().string();
    CAPTURE(model);
    const auto bundle = read_model_directory(entry.path());
    if (!bundle.ok()) FAIL(bundle.error().message());
    const auto config = bundle_config(*bundle);
    REQUIRE(config.ok());
    CHECK(config->eos_tokens == std::vector<int>{508, 510});  // generation_config.json adds 510
    const ParameterLayout layout(*config);
    std::vector<float> flat(layout.elements());
    REQUIRE(load_parameters(layout, *bundle->tensors, flat).ok());
    const DType dtype = bundle->tensors->tensor(bundle->tensors->names().front())->dtype;
    const TensorMap saved = save_parameters(layout, flat, dtype);
    for (const std::string& name : saved.names()) {
      CAPTURE(name);
      const bool prefixed = bundle->tensors->contains(name);
      const TensorView was =
          *bundle->tensors->tensor(prefixed ? name : name.substr(name.find('.') + 1));
      const TensorView is = *saved.tensor(name);
      CHECK(was.shape == is.shape);
      CHECK(was.dtype == is.dtype);
      CHECK(std::equal(was.bytes.begin(), was.bytes.end(), is.bytes.begin(), is.bytes.end()));
    }
    seen++;
  }
  MESSAGE("reference models with weights: ", seen);
}
