#include "train/spec.h"

#include <doctest/doctest.h>

#include <cmath>

#include "model/parameters.h"
#include "train/plan.h"
#include "train/resident_backend.h"

using namespace fastserve;

namespace {

TrainSpec tiny() {
  TrainSpec spec = find_preset("tiny")->spec;
  spec.model.vocab_size = 65;
  return spec;
}

}  // namespace

TEST_CASE("how far nodes may drift apart is kept with a job, and old jobs are exact") {
  TrainSpec spec = find_preset("tiny")->spec;
  spec.model.vocab_size = 65;
  spec.consistency = Consistency::parse("local:16").value();
  spec.outer_learning_rate = 0.5;
  Json json = spec.to_json();
  const TrainSpec same = TrainSpec::from_json(json, "here").value();
  CHECK(same.consistency == spec.consistency);
  CHECK(same.outer_learning_rate == 0.5);
  json.set("consistency", "alone");
  CHECK(TrainSpec::from_json(json, "here").error().where == "consistency");
  Json old = Json::object({});
  for (const auto& [key, value] : json.as_object())
    if (key != "consistency") old.set(key, value);
  CHECK(TrainSpec::from_json(old, "here").value().consistency.exact());
}

TEST_CASE("how cards add up is kept with a job, and old jobs went along the tree") {
  TrainSpec spec = tiny();
  CHECK(spec.reduce == GradientReduce::kTree);
  spec.reduce = GradientReduce::kRing;
  Json json = spec.to_json();
  CHECK(TrainSpec::from_json(json, "here").value().reduce == GradientReduce::kRing);
  json.set("reduce", "star");
  const Error error = TrainSpec::from_json(json, "here").error();
  CHECK(error.where == "reduce");
  CHECK(error.hint == "tree or ring");
  Json old = Json::object({});
  for (const auto& [key, value] : json.as_object())
    if (key != "reduce") old.set(key, value);
  CHECK(TrainSpec::from_json(old, "here").value().reduce == GradientReduce::kTree);
}

TEST_CASE("of a ring a card needs buffers for its own run, and nothing to fetch others into") {
  TrainSpec spec = tiny();
  spec.batch = spec.microbatches = 12;
  spec.reduce = GradientReduce::kRing;
  TrainPlacement placement{.trainers = 3, .shards = 3};
  placement.cards = 3;
  const TrainPlan plan = plan_training(spec, placement, 1);
  CHECK(plan.reduce == GradientReduce::kRing);
  CHECK(check_reduce(spec, plan).ok());
  CHECK(card_gradient_buffers(plan) == 3);  // four microbatches: two sums and what is added to one
  CHECK(resident_share(plan).scratch == 0);
  spec.reduce = GradientReduce::kTree;
  CHECK(resident_share(plan_training(spec, placement, 1)).scratch > 0);
}

TEST_CASE("every preset is a valid job once its vocabulary is known") {
  for (Preset& preset : all_presets()) {
    CAPTURE(preset.name);
    preset.spec.model.vocab_size = preset.vocab_size > 0 ? preset.vocab_size : 65;
    CHECK(preset.spec.validate().ok());
    const auto back = TrainSpec::from_json(preset.spec.to_json(), "spec");
    REQUIRE(back.ok());
    CHECK(back->to_json() == preset.spec.to_json());
    CHECK(count_parameters(preset.spec.model) ==
          static_cast<int64_t>(ParameterLayout(preset.spec.model).trainable()));
  }
  CHECK(find_preset("huge").error().hint.find("tiny, small, gpt2") != std::string::npos);
}

TEST_CASE("a setting that cannot be is refused by its name") {
  const auto refused = [](auto change) {
    TrainSpec spec = tiny();
    change(spec);
    const Status status = spec.validate();
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().code == ErrorCode::kInvalidArgument);
    return status.error().where;
  };
  CHECK(refused([](TrainSpec& s) { s.block = 65; }) == "block");
  CHECK(refused([](TrainSpec& s) { s.batch = 0; }) == "batch");
  CHECK(refused([](TrainSpec& s) { s.batch = 1 << 30; }) == "batch");
  CHECK(refused([](TrainSpec& s) { s.microbatches = 13; }) == "microbatches");
  CHECK(refused([](TrainSpec& s) { s.learning_rate = std::nan(""); }) == "learning_rate");
  CHECK(refused([](TrainSpec& s) { s.beta2 = 1; }) == "beta2");
  CHECK(refused([](TrainSpec& s) { s.validation_fraction = 1; }) == "validation_fraction");
  CHECK(refused([](TrainSpec& s) { s.steps = 0, s.epochs = 0; }) == "epochs");
}

TEST_CASE("a GPU's microbatches are as long as 24 GiB of activations let them be") {
  TrainSpec spec = find_preset("gpt2")->spec;
  spec.precision = Precision::kBFloat16;
  spec.model.vocab_size = 50304;
  spec.block = 1024;
  spec.accumulation = 1;
  for (const auto& [batch, parts] : {std::pair{16, 1}, {56, 1}, {64, 2}, {128, 3}}) {
    spec.batch = batch;
    CHECK(choose_device_microbatches(spec) == parts);
  }
  // A Llama of 1.1B.
  ModelConfig& model = spec.model;
  model.layers = 22;
  model.hidden_size = 2048;
  model.heads = 32;
  model.kv_heads = 4;
  model.head_dim = 64;
  model.vocab_size = 32000;
  model.mlp = MlpKind::kSwiGlu;
  model.intermediate_size = 5632;
  spec.block = 2048;
  for (const auto& [batch, parts] : {std::pair{8, 1}, {16, 2}}) {
    spec.batch = batch;
    CHECK(choose_device_microbatches(spec) == parts);
  }
}

TEST_CASE("microbatches follow from the shapes alone") {
  CHECK(choose_microbatches(tiny()) == 4);
  TrainSpec spec = find_preset("small")->spec;
  spec.model.vocab_size = 4096;
  CHECK(choose_microbatches(spec) == 4);
  spec = find_preset("gpt2")->spec;
  spec.model.vocab_size = 50257;
  spec.accumulation = 1;
  spec.block = 64;
  CHECK(choose_microbatches(spec) == 1);
  spec.batch = 1;
  spec.block = 512;
  CHECK(choose_microbatches(spec) == 1);
  const TrainPlan plan = plan_training(spec, {}, 2);
  CHECK(plan.trainers == 1);
  CHECK(plan.lanes_of(0) == 2);
  CHECK(plan_training(tiny(), {}, 2).trainers == 2);
  CHECK(plan_training(tiny(), {.trainers = 7, .lanes = 2}, 8).lanes_of(6) == 1);
  // As few units as keep all cards at work: a gradient lies on one of them.
  TrainSpec wide = tiny();
  wide.microbatches = 8;
  const TrainPlan cards = plan_training(wide, {.trainers = 2, .shards = 2, .cards = 2}, 8);
  CHECK(cards.unit == 4);
  CHECK(card_gradient_buffers(cards) == 2 + 2);  // one to spare for a straggler's
  CHECK(gradient_buffers(cards) == 2 + 4);
  CHECK(cards.card_of_trainer(3) == 1);
  CHECK(cards.card_of_shard(1, 4) == 0);
  CHECK(cards.card_of_shard(2, 4) == 1);
  // A trainer without a microbatch would only wait.
  CHECK(plan_training(tiny(), {.trainers = 7, .lanes = 2}, 8).trainers == 4);
}
