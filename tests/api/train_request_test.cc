#include "api/train_request.h"

#include <doctest/doctest.h>

using namespace fastserve;

namespace {

Result<TrainRequest> read(const char* text) {
  return read_train_request(Json::parse(text, "test").value());
}

TEST_CASE("a request for a job arrives as it was sent, down to its last setting") {
  TrainRequest sent;
  sent.model = "poems";
  sent.data = "/data/texts";
  sent.preset = "small";
  sent.from = "llama@2";
  sent.resume = "7f3a91c2";
  sent.vocab_size = 0;
  sent.batch = 8;
  sent.block = 128;
  sent.microbatches = 4;
  sent.accumulation = 2;
  sent.patience = 3;
  sent.evaluate_sequences = 64;
  sent.steps = int64_t{1} << 40;
  sent.evaluate_every = 10;
  sent.checkpoint_every = 20;
  sent.warmup_steps = 5;
  sent.epochs = 1.5;
  sent.learning_rate = 3e-4;
  sent.min_learning_rate = 3e-5;
  sent.weight_decay = 0.1;
  sent.clip_norm = 0;
  sent.validation_fraction = 0.05;
  sent.precision = Precision::kFloat16;
  sent.seed = 7;
  sent.publish_best = false;
  sent.gradients = "int8";
  sent.weights_back = "bf16";
  sent.consistency = "local:16";
  sent.checkpoints = "nodes";
  sent.checkpoint_copies = 1;
  sent.keep_checkpoints = 3;
  sent.outer_learning_rate = 0.5;
  sent.outer_momentum = 0.8;
  sent.replicas = 1;
  sent.reduce = "ring";
  sent.placement = {3, 4, 5};
  const Json json = to_json(sent);
  const auto got = read_train_request(json);
  REQUIRE(got.ok());
  CHECK(to_json(*got) == json);
  CHECK(json.as_object().size() == 38);  // every setting there is
  CHECK(got->vocab_size == 0);
  CHECK(got->steps == int64_t{1} << 40);
  CHECK(got->precision == Precision::kFloat16);
  CHECK(got->publish_best == false);
  CHECK(got->consistency == "local:16");
  CHECK(got->replicas == 1);
  CHECK(got->reduce == "ring");
  CHECK(got->placement.shards == 5);
}

TEST_CASE("what is not set stays the preset's") {
  const auto got = read(to_json(TrainRequest{}).dump().c_str());
  REQUIRE(got.ok());
  CHECK(to_json(*got).dump() == R"({"preset": "tiny"})");
  CHECK(got->vocab_size == -1);
  CHECK_FALSE(got->steps.has_value());
  CHECK(read(R"({"steps":null})").ok());
}

TEST_CASE("a setting that is none is refused by its name, with what may have been meant") {
  const auto got = read(R"({"modle":"poems"})");
  REQUIRE_FALSE(got.ok());
  CHECK(got.error().code == ErrorCode::kInvalidArgument);
  CHECK(got.error().message() == "modle: is no setting of a training job (did you mean model?)");
}

TEST_CASE("a value that cannot be is refused by its setting's name") {
  for (const auto& [text, where] : std::initializer_list<std::pair<const char*, const char*>>{
           {R"({"model":1})", "model"},
           {R"({"data":[]})", "data"},
           {R"({"batch":"8"})", "batch"},
           {R"({"batch":8.5})", "batch"},
           {R"({"batch":4294967296})", "batch"},
           {R"({"seed":-1})", "seed"},
           {R"({"epochs":"all"})", "epochs"},
           {R"({"precision":"fp8"})", "precision"},
           {R"({"publish_best":1})", "publish_best"},
           {R"([])", "the request"}}) {
    CAPTURE(text);
    const auto got = read(text);
    REQUIRE_FALSE(got.ok());
    CHECK(got.error().code == ErrorCode::kInvalidArgument);
    CHECK(got.error().where == where);
  }
}

}  // namespace
