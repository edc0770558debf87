// Who holds which parameters, and that it makes no difference to the bits.
#include "actors/shard_places.h"

#include <doctest/doctest.h>

#include "background_job.h"

using namespace fastserve;

namespace {

std::vector<JobNode> two_nodes() {
  std::vector<JobNode> nodes(2);
  nodes[0].name = "a";
  nodes[0].lanes = 2;
  nodes[1].name = "b";
  return nodes;
}

TrainSpec exact_spec() { return real_job(1, 1, Precision::kBFloat16).spec; }

constexpr size_t kTwelveMillion = 12'300'000;

}  // namespace

TEST_CASE(
    "every node holds a part of every stretch of a large model, and one part of a small one") {
  const auto nodes = two_nodes();
  CHECK(place_shards(nodes, 100, 2) == std::vector<std::string>{"a", "a", "b", "a", "a", "b"});
  CHECK(place_shards(nodes, 100, 1) == std::vector<std::string>{"a", "a", "b"});
  CHECK(place_shards(nodes, 5, 8) == std::vector<std::string>{"a", "a", "b"});  // so few tiles
  CHECK(place_shards(nodes, 2, 8) == std::vector<std::string>{"a", "b"});
  CHECK(count_stripes(exact_spec(), kTwelveMillion, nodes) == 8);
  CHECK(count_stripes(exact_spec(), 3'000'000, nodes) == 3);
  CHECK(count_stripes(exact_spec(), 100'000, nodes) == 1);
}

TEST_CASE("who sends everything at once, and a matrix that is not to be cut, stay in one piece") {
  TrainSpec spec = exact_spec();
  spec.gradients = GradientFormat::parse("lowrank:4").value();
  CHECK(count_stripes(spec, kTwelveMillion, two_nodes()) == 1);
  spec = exact_spec();
  spec.weights_back = WeightsBack::parse("lowrank-delta:4").value();
  CHECK(count_stripes(spec, kTwelveMillion, two_nodes()) == 1);
  spec = exact_spec();
  spec.consistency = {Consistency::Kind::kLocal, 4};
  CHECK(count_stripes(spec, kTwelveMillion, two_nodes()) == 1);
}

TEST_CASE("a model in several stretches on two nodes ends in the bits of one process") {
  const auto job = [](const Folder& folder) {
    TrainingSystem::Config config = real_job(1, 1, Precision::kBFloat16);
    config.checkpoint_directory = folder.path;
    config.log = log_of_test();
    config.spec.block = 16;
    ModelConfig& model = config.spec.model;
    model.hidden_size = 192;
    model.head_dim = 96;
    model.intermediate_size = 768;
    model.layers = 3;
    return config;
  };
  Folder alone;
  const TrainOutcome expected = run(job(alone));
  InProcessCluster cluster(log_of_test());
  cluster.add("node-0");
  cluster.add("node-1");
  cluster.wait_for_nodes(2);
  Folder folder;
  const auto config = job(folder);
  const size_t elements = ParameterLayout(config.spec.model).elements();
  std::vector<JobNode> nodes(2);
  REQUIRE(count_stripes(config.spec, elements, nodes) >= 2);
  auto outcome = cluster.coordinator().train(config, "job", {});
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(hash_of(outcome->weights) == hash_of(expected.weights));
  CHECK(outcome->validation_loss == expected.validation_loss);
}
