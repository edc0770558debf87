// Jobs whose shards are held by more than one node: who is lost is done without.
#include "cluster_jobs.h"

using namespace fastserve;

namespace {

constexpr int64_t kSteps = 400;  // nodes have the time to come back

TrainingSystem::Config replicated_job_in(const Folder& folder, int64_t steps = kSteps) {
  TrainingSystem::Config config = long_job_in(folder, steps);
  config.spec.replicas = 1;
  return config;
}

/// False when it does not come to that within half a minute.
bool wait_for_replicas(BackgroundJob& job, int wanted) {
  for (int i = 0; i < 3000 && job.run().replicas != wanted; i++)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  return job.run().replicas == wanted;
}

}  // namespace

TEST_CASE("a job whose shards are held twice ends in the bits of one process") {
  for (const Precision precision : {Precision::kBFloat16, Precision::kFloat32}) {
    const TrainOutcome expected = run(real_job(1, 1, precision));
    for (const int count : {1, 2, 3}) {
      CAPTURE(count);
      InProcessCluster cluster(log_of_test());
      for (int i = 0; i < count; i++) cluster.add("node-" + std::to_string(i), 1 + i % 2);
      cluster.add("worker", 1, {"trainer"});
      cluster.wait_for_nodes(static_cast<size_t>(count) + 1);
      Folder folder;
      TrainingSystem::Config config = job_in(folder, precision);
      config.spec.replicas = 1;
      auto outcome = cluster.coordinator().train(std::move(config), "job", {});
      REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
      CHECK(hash_of(outcome->weights) == hash_of(expected.weights));
      CHECK(hash_of(outcome->best_weights) == hash_of(expected.best_weights));
      CHECK(outcome->validation_loss == expected.validation_loss);
    }
  }
}

TEST_CASE("a node with parameters is lost: others lead its shards, and no step is replayed") {
  const uint64_t expected = bits_of_long_job(kSteps);
  InProcessCluster cluster(log_of_test());
  for (const char* name : {"one", "two", "three"}) cluster.add(name);
  cluster.wait_for_nodes(3);
  Folder folder;
  BackgroundJob job(cluster, replicated_job_in(folder));
  REQUIRE(job.wait_for_step(8));
  cluster.kill("two");
  REQUIRE(job.wait_for_step(60));
  CHECK(wait_for_replicas(job, 1));  // the others have copied what they did not hold
  cluster.kill("one");
  REQUIRE(job.wait_for_step(110));
  CHECK(wait_for_replicas(job, 0));
  cluster.add("four", 2);
  CHECK(wait_for_replicas(job, 1));
  cluster.kill("three");
  const auto outcome = job.end();
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(hash_of(outcome->weights) == expected);
  CHECK(job.run().incarnation == 1);
  CHECK(job.run().replayed_steps == 0);
}

TEST_CASE(
    "a node without parameters gets the weights of a lost node's shards from who leads them") {
  const uint64_t expected = bits_of_long_job();
  InProcessCluster cluster(log_of_test());
  cluster.add("one", 1, {"parameter-server"});
  cluster.add("two", 1, {"parameter-server"});
  cluster.add("worker", 2, {"trainer"});
  cluster.wait_for_nodes(3);
  Folder folder;
  BackgroundJob job(cluster, replicated_job_in(folder, 60));
  REQUIRE(job.wait_for_step(8));
  cluster.kill("one");
  const auto outcome = job.end();
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(hash_of(outcome->weights) == expected);
  CHECK(job.run().incarnation == 1);
}

TEST_CASE("both nodes that hold a shard are lost: the job goes on from its checkpoint") {
  const uint64_t expected = bits_of_long_job();
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.add("two");
  cluster.wait_for_nodes(2);
  Folder folder;
  BackgroundJob job(cluster, replicated_job_in(folder, 60), 20);
  REQUIRE(job.wait_for_step(20));
  cluster.kill("two");
  cluster.kill("one");
  cluster.add("other");
  job.go_on();
  const auto outcome = job.end();
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(hash_of(outcome->weights) == expected);
  CHECK(job.run().incarnation >= 2);
}

TEST_CASE("a drained node that holds parameters is done without, and no step is replayed") {
  const uint64_t expected = bits_of_long_job();
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.add("two");
  cluster.wait_for_nodes(2);
  Folder folder;
  BackgroundJob job(cluster, replicated_job_in(folder, 60), 8);
  REQUIRE(job.wait_for_step(8));
  cluster.coordinator().set_draining("one", true);
  job.go_on();
  const auto outcome = job.end();
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(hash_of(outcome->weights) == expected);
  CHECK(job.run().incarnation == 1);
}

TEST_CASE("a job in one process is told that nobody could hold its shards twice") {
  TrainingSystem::Config config = made_up_job(1, 1);
  config.spec.replicas = 1;
  const auto system = TrainingSystem::start(std::move(config));
  REQUIRE_FALSE(system.ok());
  CHECK(system.error().where == "replicas");
}
