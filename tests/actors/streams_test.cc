// Jobs whose nodes have several streams between them: the same bits, in whatever order bytes come.
#include "background_job.h"

using namespace fastserve;

namespace {

constexpr int kStreams = 3;

TrainingSystem::Config job_in(const Folder& folder, int64_t steps = 6) {
  TrainingSystem::Config config = real_job(1, 1, Precision::kBFloat16);
  config.checkpoint_directory = folder.path;
  config.log = log_of_test();
  config.spec.steps = steps;
  config.spec.checkpoint_every = 5;
  config.spec.evaluate_every = 10;
  return config;
}

TrainOutcome alone(const TrainingSystem::Config& on_nodes) {
  TrainingSystem::Config config = on_nodes;
  Folder folder;
  config.checkpoint_directory = folder.path;
  return run(config);
}

}  // namespace

TEST_CASE("a job over lanes of three streams ends in the bits of one process") {
  Folder first;
  const TrainOutcome expected = alone(job_in(first));
  for (int i = 0; i < 5; i++) {
    CAPTURE(i);
    Folder folder;
    InProcessCluster cluster(log_of_test(), kStreams);
    for (const char* name : {"a", "b", "c"}) cluster.add(name);
    cluster.wait_for_nodes(3);
    auto outcome = cluster.coordinator().train(job_in(folder), "job", {});
    REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
    CHECK(hash_of(outcome->weights) == hash_of(expected.weights));
    CHECK(hash_of(outcome->best_weights) == hash_of(expected.best_weights));
  }
}

TEST_CASE("the end of one stream is its lane's, and the job goes on with the same bits") {
  const std::vector<std::pair<std::string, std::string>> lanes{{"a", "b"}, {"b", "coordinator"}};
  for (const auto& [from, to] : lanes) {
    CAPTURE(to);
    Folder first, folder;
    const TrainOutcome expected = alone(job_in(first, 60));
    InProcessCluster cluster(log_of_test(), kStreams);
    for (const char* name : {"a", "b"}) cluster.add(name);
    cluster.wait_for_nodes(2);
    BackgroundJob job(cluster, job_in(folder, 60), 12);
    REQUIRE(job.wait_for_step(12));
    REQUIRE(cluster.cut_stream(from, to, 1));
    job.go_on();
    auto outcome = job.end();
    REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
    CHECK(hash_of(outcome->weights) == hash_of(expected.weights));
    CHECK(job.run().incarnation == 2);
  }
}

TEST_CASE("weights that come as deltas come in their order to a node that joins") {
  Folder folder;
  InProcessCluster cluster(log_of_test(), kStreams);
  cluster.add("a");
  cluster.add("b");
  cluster.wait_for_nodes(2);
  TrainingSystem::Config config = job_in(folder, 200);
  config.spec.gradients = GradientFormat::parse("int8").value();
  config.spec.weights_back = WeightsBack::parse("int8-delta").value();
  BackgroundJob job(cluster, std::move(config));
  for (const int at : {5, 50, 100}) {
    REQUIRE(job.wait_for_step(at));
    cluster.add("late-" + std::to_string(at), 1, {"trainer"});
  }
  const auto outcome = job.end();
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(job.run().incarnation == 1);
}
