// Jobs over several nodes: the same bits as in one process, whoever is lost when.
#include "cluster_jobs.h"

using namespace fastserve;

TEST_CASE("a job on one, two or three nodes ends in the bits of one process") {
  for (const Precision precision : {Precision::kBFloat16, Precision::kFloat32}) {
    const TrainOutcome expected = run(real_job(1, 1, precision));
    for (const int count : {1, 2, 3}) {
      CAPTURE(count);
      InProcessCluster cluster(log_of_test());
      for (int i = 0; i < count; i++) cluster.add("node-" + std::to_string(i), 1 + i % 2);
      cluster.wait_for_nodes(static_cast<size_t>(count));
      Folder folder;
      auto outcome = cluster.coordinator().train(job_in(folder, precision), "job", {});
      REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
      CHECK(outcome->end == TrainEnd::kAllSteps);
      CHECK(hash_of(outcome->weights) == hash_of(expected.weights));
      CHECK(hash_of(outcome->best_weights) == hash_of(expected.best_weights));
      CHECK(outcome->validation_loss == expected.validation_loss);
    }
  }
}

TEST_CASE("a trainer without parameters is lost and comes back within one incarnation") {
  const uint64_t expected = bits_of_long_job();
  InProcessCluster cluster(log_of_test());
  cluster.add("keeper");
  cluster.add("worker", 1, {"trainer"});
  cluster.wait_for_nodes(2);
  Folder folder;
  BackgroundJob job(cluster, long_job_in(folder));
  REQUIRE(job.wait_for_step(3));
  cluster.kill("worker");
  REQUIRE(job.wait_for_step(8));
  cluster.add("worker", 1, {"trainer"});
  cluster.add("late", 2, {"trainer"});
  const auto outcome = job.end();
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(hash_of(outcome->weights) == expected);
  CHECK(job.run().incarnation == 1);
  CHECK(job.run().replayed_steps == 0);
}

TEST_CASE("a job goes on while its nodes wait for an answer of one that is to join") {
  const uint64_t expected = bits_of_long_job();
  InProcessCluster cluster(log_of_test());
  cluster.add("a");
  cluster.add("b");
  cluster.wait_for_nodes(2);
  Folder folder;
  BackgroundJob job(cluster, long_job_in(folder), 10);
  REQUIRE(job.wait_for_step(10));
  cluster.hold_dials_to("c", true);
  cluster.add("c");
  const bool both_wait = cluster.wait_for_held_dials(2);
  job.go_on();
  const bool went_on = job.wait_for_step(60);
  cluster.hold_dials_to("c", false);
  REQUIRE(both_wait);
  REQUIRE(went_on);
  const auto outcome = job.end();
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(hash_of(outcome->weights) == expected);
  CHECK(job.run().incarnation == 1);
}

TEST_CASE("a node with parameters is lost: the job goes on from its checkpoint to the same bits") {
  const uint64_t expected = bits_of_long_job();
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.add("two");
  cluster.wait_for_nodes(2);
  Folder folder;
  BackgroundJob job(cluster, long_job_in(folder));
  REQUIRE(job.wait_for_step(8));
  cluster.kill("two");
  REQUIRE(job.wait_for_step(20));
  cluster.add("three", 2);
  REQUIRE(job.wait_for_step(30));
  cluster.kill("one");
  const auto outcome = job.end();
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(hash_of(outcome->weights) == expected);
  CHECK(job.run().incarnation >= 3);
}

TEST_CASE("all nodes are lost: the job waits for others, and ends in the same bits") {
  const uint64_t expected = bits_of_long_job();
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.wait_for_nodes(1);
  Folder folder;
  BackgroundJob job(cluster, long_job_in(folder));
  REQUIRE(job.wait_for_step(12));
  cluster.kill("one");
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  cluster.add("other", 2);
  const auto outcome = job.end();
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(hash_of(outcome->weights) == expected);
}

TEST_CASE("a cancelled job leaves a checkpoint, from which another cluster goes on") {
  const uint64_t expected = bits_of_long_job();
  Folder folder;
  {
    InProcessCluster cluster(log_of_test());
    cluster.add("one");
    cluster.add("two");
    cluster.wait_for_nodes(2);
    BackgroundJob job(cluster, long_job_in(folder));
    REQUIRE(job.wait_for_step(12));
    job.cancel.raise();
    const auto outcome = job.end();
    REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
    CHECK(outcome->end == TrainEnd::kCancelled);
  }
  InProcessCluster cluster(log_of_test());
  cluster.add("three", 2);
  cluster.wait_for_nodes(1);
  const auto outcome = cluster.coordinator().train(long_job_in(folder), "job", {});
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(hash_of(outcome->weights) == expected);
}

TEST_CASE("the coordinator is lost: another one goes on with the nodes that come back to it") {
  constexpr int64_t kSteps = 300;  // not over before the coordinator looks whether it is to stop
  const uint64_t expected = bits_of_long_job(kSteps);
  Folder folder;
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.add("two");
  cluster.wait_for_nodes(2);
  {
    BackgroundJob job(cluster, long_job_in(folder, kSteps));
    REQUIRE(job.wait_for_step(12));
    cluster.coordinator().stop();
    CHECK_FALSE(job.end().ok());
  }
  cluster.kill_coordinator();
  cluster.start_coordinator();
  cluster.wait_for_nodes(2);
  const auto outcome = cluster.coordinator().train(long_job_in(folder, kSteps), "job", {});
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(hash_of(outcome->weights) == expected);
}

TEST_CASE("a drained node is done without, and a job on no node at all can be cancelled") {
  const uint64_t expected = bits_of_long_job();
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.add("two");
  cluster.wait_for_nodes(2);
  Folder folder;
  BackgroundJob job(cluster, long_job_in(folder));
  REQUIRE(job.wait_for_step(8));
  cluster.coordinator().set_draining("one", true);
  const auto outcome = job.end();
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(hash_of(outcome->weights) == expected);
  cluster.coordinator().set_draining("two", true);
  Folder other;
  BackgroundJob idle(cluster, long_job_in(other));
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  CHECK(idle.run().waiting_for == "a node that trains");
  idle.cancel.raise();
  CHECK(idle.end().error().code == ErrorCode::kCancelled);
}

TEST_CASE("a job whose gradients a ring is to sum is refused, since that is for one process") {
  InProcessCluster cluster(log_of_test());
  Folder folder;
  TrainingSystem::Config config = job_in(folder);
  config.spec.reduce = GradientReduce::kRing;
  const auto refused = cluster.coordinator().train(std::move(config), "job", {});
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::kInvalidArgument);
  CHECK(refused.error().where == "reduce");
  CHECK(refused.error().message().find("--reduce tree") != std::string::npos);
}

TEST_CASE("a node whose certificate is due gets its next one from the coordinator") {
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.wait_for_nodes(1);
  for (int i = 0; i < 500 && cluster.renewed("one").empty(); i++)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK(cluster.renewed("one") == "one: certified request of one");
}

TEST_CASE("a removed node is told so, and ends") {
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.add("two");
  cluster.wait_for_nodes(2);
  cluster.coordinator().forget("two");
  const Status end = cluster.end_of("two");
  REQUIRE_FALSE(end.ok());
  CHECK(end.error().what == "has been removed from the cluster");
  CHECK(cluster.coordinator().nodes().size() == 1);
}

TEST_CASE(
    "gradients and weights in fewer bytes: the job learns nearly as well, and a node may join") {
  Folder exact_folder;
  const TrainOutcome exact = run(long_job_in(exact_folder));
  for (const auto& [gradients, back] : {std::pair{"bf16", "bf16"},
                                        {"int8", "int8-delta"},
                                        {"topk:0.3", "exact"},
                                        {"lowrank:4", "bf16"}}) {
    CAPTURE(gradients);
    InProcessCluster cluster(log_of_test());
    cluster.add("one");
    cluster.add("two");
    cluster.wait_for_nodes(2);
    Folder folder;
    TrainingSystem::Config config = long_job_in(folder);
    config.spec.gradients = GradientFormat::parse(gradients).value();
    config.spec.weights_back = WeightsBack::parse(back).value();
    BackgroundJob job(cluster, std::move(config));
    REQUIRE(job.wait_for_step(5));
    cluster.add("late", 1, {"trainer"});
    const auto outcome = job.end();
    REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
    CHECK(job.run().incarnation == 1);
    CHECK(hash_of(outcome->weights) != hash_of(exact.weights));
    CHECK(*outcome->validation_loss == doctest::Approx(*exact.validation_loss).epsilon(0.05));
  }
}
