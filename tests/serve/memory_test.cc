// What a served model will take, said before it is loaded.
#include "serve/memory.h"

#include <doctest/doctest.h>

#include "model/parameters.h"

namespace fastserve {

TEST_CASE(
    "keys and values as int8 take half of f16's memory, and a scale for each token and head") {
  ModelConfig config;
  config.vocab_size = 100;
  config.hidden_size = 256;
  config.layers = 3;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 64;
  config.intermediate_size = 512;
  config.max_positions = 128;
  DecoderOptions options;
  options.kv_blocks = 10;
  options.block_tokens = 16;
  const auto kv = [&](KvType type) {
    options.kv = type;
    return estimate_decoder_memory(config, {}, options).kv;
  };
  const uint64_t heads =
      uint64_t{10} * 16 * 3 * 2 * 2;  // tokens, layers, keys and values, kv heads
  CHECK(kv(KvType::kFloat32) == heads * 64 * 4);
  CHECK(kv(KvType::kFloat16) == heads * 64 * 2);
  CHECK(kv(KvType::kInt8) == heads * (64 + 4));
}

TEST_CASE(
    "a table of tokens takes what it takes where it is stored, and f16 when it is quantised") {
  ModelConfig config;
  config.vocab_size = 1000;
  config.hidden_size = 64;
  config.layers = 1;
  config.heads = config.kv_heads = 1;
  config.head_dim = 64;
  config.intermediate_size = 64;
  config.max_positions = 16;
  DecoderOptions options;
  options.kv_blocks = 1;
  const ParameterLayout layout(config);
  const std::string name = layout.parameters().front().name;
  const auto weights = [&](DType type, const std::map<std::string, WeightFormat>& formats) {
    return estimate_decoder_memory(config, formats, options, type).weights;
  };
  const uint64_t half = weights(DType::kBF16, {});
  CHECK(weights(DType::kF32, {}) == half + uint64_t{1000} * 64 * 2);
  CHECK(weights(DType::kF32, {{name, WeightFormat::kInt8Group32}}) == half);
}

TEST_CASE(
    "the type of a KV cache is read by its name, and others are refused with those there are") {
  for (const KvType type : {KvType::kFloat32, KvType::kFloat16, KvType::kInt8})
    CHECK(*parse_kv_type(kv_type_name(type)) == type);
  const auto wrong = parse_kv_type("int4");
  REQUIRE_FALSE(wrong.ok());
  CHECK(wrong.error().code == ErrorCode::kInvalidArgument);
  CHECK(wrong.error().hint == "use f16, f32 or int8");
}

}  // namespace fastserve
