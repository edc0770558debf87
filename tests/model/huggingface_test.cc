#include "model/huggingface.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "model/parameters.h"
#include "model/safetensors.h"
#include "tests/model/reference_files.h"

using namespace fastserve;

namespace {

/// A random small model as a bundle.
ModelBundle small_bundle(Architecture architecture, bool tied) {
  ModelConfig config;
  config.architecture = architecture;
  config.vocab_size = 24;
  config.hidden_size = 32;
  config.layers = 2;
  config.heads = config.kv_heads = 2;
  config.head_dim = 16;
  config.intermediate_size = 48;
  config.max_positions = 16;
  config.rope = Rope{};
  config.tied_embeddings = tied;
  if (architecture == Architecture::kGpt2) {
    config.rope.reset();
    config.norm = NormKind::kLayerNorm;
    config.mlp = MlpKind::kGeluTanh;
    config.qkv_bias = config.output_bias = config.mlp_bias = true;
  }
  const ParameterLayout layout(config);
  std::vector<float> flat(layout.elements());
  initialise_parameters(config, layout, 5, flat);
  ModelBundle bundle;
  bundle.documents["config.json"] = config.to_json().dump(2);
  bundle.documents["tokenizer.json"] = "{}";
  bundle.tensors = std::make_shared<TensorMap>(save_parameters(layout, flat, DType::kF32));
  return bundle;
}

/// The same with one matrix and the output head held as int8 rows of ones.
ModelBundle quantised(const ModelBundle& plain, const std::string& name, int rows, int cols) {
  auto tensors = std::make_shared<TensorMap>();
  for (const std::string& other : plain.tensors->names()) {
    if (other == name || other == "lm_head.weight") continue;
    const TensorView view = *plain.tensors->tensor(other);
    tensors->add(other, Tensor::from_floats(view.shape, view.to_floats()));
  }
  QuantisedMatrix matrix{WeightFormat::kInt8Row, rows, cols, {}, {}};
  matrix.codes.resize(static_cast<size_t>(rows * cols), 1);
  for (int i = 0; i < rows; i++) matrix.scales.push_back(static_cast<float>(i + 1));
  add_quantised(*tensors, name, matrix);
  QuantisedMatrix head{WeightFormat::kInt8Row, 24, 32, std::vector<uint8_t>(24 * 32, 2),
                       std::vector<float>(24, 0.5f)};
  add_quantised(*tensors, "lm_head.weight", head);
  ModelBundle bundle = plain;
  Json config = *Json::parse(bundle.documents["config.json"], "c");
  Json weights;
  weights.set(name, "int8");
  weights.set("lm_head.weight", "int8");
  Json own;
  own.set("weights", weights);
  config.set("fastserve", own);
  bundle.documents["config.json"] = config.dump();
  bundle.tensors = tensors;
  return bundle;
}

void check_same_tensors(const TensorSource& a, const TensorSource& b) {
  REQUIRE(a.names() == b.names());
  for (const std::string& name : a.names()) {
    CHECK(a.tensor(name)->shape == b.tensor(name)->shape);
    CHECK(a.tensor(name)->to_floats() == b.tensor(name)->to_floats());
  }
}

}  // namespace

TEST_CASE(
    "a model written as a Hugging Face directory reads back the same, in one file or in shards") {
  const ModelBundle bundle = small_bundle(Architecture::kGpt2, true);
  for (const uint64_t shard_bytes : {uint64_t{1} << 30, uint64_t{20000}}) {
    const TemporaryFolder folder;
    const Status written = write_model_directory(folder / "model", bundle, false, shard_bytes);
    if (!written.ok()) FAIL(written.error().message());
    const bool sharded = std::filesystem::exists(folder / "model/model.safetensors.index.json");
    CHECK(sharded == (shard_bytes == 20000));
    const auto back = read_model_directory(folder / "model");
    if (!back.ok()) FAIL(back.error().message());
    check_same_tensors(*bundle.tensors, *back->tensors);
    CHECK(*bundle_config(*back) == *bundle_config(bundle));
    CHECK(back->documents.at("tokenizer.json") == "{}");
    CHECK(Json::parse(back->documents.at("config.json"), "c")->find("torch_dtype")->as_string() ==
          "float32");
    CHECK(!std::filesystem::exists(folder / ".model.tmp"));
  }
}

TEST_CASE("a directory that is there is left alone, and a refused bundle leaves nothing behind") {
  const TemporaryFolder folder;
  ModelBundle bundle = small_bundle(Architecture::kLlama, false);
  REQUIRE(make_directories(folder / "model").ok());
  CHECK(write_model_directory(folder / "model", bundle).error().code == ErrorCode::kAlreadyExists);
  CHECK(std::filesystem::is_empty(folder / "model"));
  bundle.documents["../escape"] = "x";
  CHECK(write_model_directory(folder / "other", bundle).error().code ==
        ErrorCode::kInvalidArgument);
  CHECK(!std::filesystem::exists(folder / "other"));
  CHECK(!std::filesystem::exists(folder / ".other.tmp"));
}

TEST_CASE(
    "quantised matrices are kept as they are, or written as bf16 that any reader understands") {
  const ModelBundle plain = small_bundle(Architecture::kGpt2, true);
  const ModelBundle bundle = quantised(plain, "transformer.h.0.mlp.c_fc.weight", 48, 32);
  const TemporaryFolder folder;
  REQUIRE(write_model_directory(folder / "kept", bundle, true).ok());
  const auto kept = read_model_directory(folder / "kept");
  REQUIRE(kept.ok());
  check_same_tensors(*bundle.tensors, *kept->tensors);
  CHECK(bundle_weight_formats(*kept)->size() == 2);

  REQUIRE(write_model_directory(folder / "floats", bundle, false).ok());
  const auto floats = read_model_directory(folder / "floats");
  if (!floats.ok()) FAIL(floats.error().message());
  CHECK(bundle_weight_formats(*floats)->empty());
  const TensorView up = *floats->tensors->tensor("transformer.h.0.mlp.c_fc.weight");
  CHECK(up.dtype == DType::kBF16);
  CHECK(up.shape == std::vector<int64_t>{32, 48});  // [in, out] again
  CHECK(up.to_floats()[47] == 48.0f);
  CHECK(floats->tensors->tensor("lm_head.weight")->to_floats()[0] == 1.0f);
  CHECK(!bundle_config(*floats)->tied_embeddings);  // the head has its own numbers now
}

TEST_CASE("weights that the config has no place for are refused by name") {
  ModelBundle bundle = small_bundle(Architecture::kLlama, false);
  TensorMap more = dynamic_cast<const TensorMap&>(*bundle.tensors);
  more.add("model.layers.0.self_attn.q_proj.bias",
           Tensor::from_floats({32}, std::vector<float>(32)));
  bundle.tensors = std::make_shared<TensorMap>(more);
  const Error error = check_bundle(bundle).error();
  CHECK(error.code == ErrorCode::kCorrupt);
  CHECK(error.what ==
        "config.json has no place for the tensor \"model.layers.0.self_attn.q_proj.bias\"");
}

TEST_CASE("a config that names an unknown weight format or matrix is refused") {
  const ModelBundle plain = small_bundle(Architecture::kGpt2, true);
  ModelBundle bundle = quantised(plain, "transformer.h.0.mlp.c_fc.weight", 48, 32);
  std::string& config = bundle.documents["config.json"];
  const std::string good = config;
  config.replace(config.find("\"int8\""), 6, "\"int7\"");
  CHECK(check_bundle(bundle).error().what.find("int7") != std::string::npos);
  config = good;
  config.replace(config.find("transformer.h.0.mlp"), 15, "transformer.h.9");
  CHECK(!check_bundle(bundle).ok());
}
