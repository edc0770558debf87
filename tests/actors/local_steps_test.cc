// Jobs whose nodes train by themselves for some steps and meet in the mean.
#include "background_job.h"
#include "model/parameters.h"
#include "train/checkpoint.h"
#include "train/ledger_audit.h"

using namespace fastserve;

namespace {

TrainingSystem::Config local_job_in(const Folder& folder, int local_steps = 4,
                                    const char* gradients = "fp32", const char* back = "exact") {
  TrainingSystem::Config config = real_job(1, 1, Precision::kBFloat16);
  config.checkpoint_directory = folder.path / "checkpoints";
  config.ledger = folder.path / "ledger";
  config.log = log_of_test();
  config.spec.steps = 60;
  config.spec.checkpoint_every = 5;
  config.spec.evaluate_every = 10;
  config.spec.consistency = {Consistency::Kind::kLocal, local_steps};
  config.spec.gradients = GradientFormat::parse(gradients).value();
  config.spec.weights_back = WeightsBack::parse(back).value();
  return config;
}

TrainOutcome exact_outcome() {
  Folder folder;
  TrainingSystem::Config config = local_job_in(folder);
  config.spec.consistency = {};
  return run(std::move(config));
}

/// The loss falls nearly as far as that of a job whose steps are all of all nodes.
void check_learnt(const TrainOutcome& outcome) {
  static const double exact = *exact_outcome().validation_loss;
  CHECK(outcome.end == TrainEnd::kAllSteps);
  CHECK(outcome.steps == 60);
  CHECK(*outcome.validation_loss == doctest::Approx(exact).epsilon(0.05));
}

LedgerAudit audited(const Folder& folder) {
  const TrainingSystem::Config config = local_job_in(folder);
  const std::string bytes = read_file(folder.path / "ledger").value();
  auto found = audit(std::as_bytes(std::span(bytes)), config.spec, 60, 0, "ledger");
  REQUIRE_MESSAGE(found.ok(), found.error().message());
  return *found;
}

}  // namespace

TEST_CASE("nodes that take steps by themselves learn as well, and each sample counts once") {
  for (const auto& [gradients, back] :
       {std::pair{"fp32", "exact"}, {"bf16", "bf16"}, {"int8", "int8-delta"}}) {
    CAPTURE(gradients);
    InProcessCluster cluster(log_of_test());
    cluster.add("one", 2);
    cluster.add("two", 1);
    cluster.wait_for_nodes(2);
    Folder folder;
    auto outcome = cluster.coordinator().train(local_job_in(folder, 4, gradients, back), "job", {});
    REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
    check_learnt(*outcome);
    CHECK(outcome->losses.size() == 60);
    const LedgerAudit found = audited(folder);
    CHECK(found.microbatches.at("one") > 0);
    CHECK(found.microbatches.at("two") > 0);
  }
}

TEST_CASE("one node alone takes its local steps, and a round ends with the job") {
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.wait_for_nodes(1);
  Folder folder;
  auto outcome = cluster.coordinator().train(local_job_in(folder, 16), "job", {});
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  check_learnt(*outcome);
  audited(folder);
}

TEST_CASE("a node lost in the midst of its local steps is done without, and may come back") {
  InProcessCluster cluster(log_of_test());
  cluster.add("keeper");
  cluster.add("worker", 1, {"trainer"});
  cluster.wait_for_nodes(2);
  Folder folder;
  BackgroundJob job(cluster, local_job_in(folder, 4, "int8", "int8-delta"));
  REQUIRE(job.wait_for_step(8));
  cluster.kill("worker");
  REQUIRE(job.wait_for_step(16));
  cluster.add("worker", 1, {"trainer"});
  cluster.add("late", 2, {"trainer"});
  const auto outcome = job.end();
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  check_learnt(*outcome);
  CHECK(job.run().incarnation == 1);
  CHECK(audited(folder).microbatches.at("worker") > 0);
}

TEST_CASE("a node with parameters is lost between local steps: the job goes on from a checkpoint") {
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.add("two");
  cluster.wait_for_nodes(2);
  Folder folder;
  BackgroundJob job(cluster, local_job_in(folder));
  REQUIRE(job.wait_for_step(12));
  cluster.kill("two");
  REQUIRE(job.wait_for_step(24));
  cluster.add("three", 2);
  const auto outcome = job.end();
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  check_learnt(*outcome);
  CHECK(job.run().incarnation >= 2);
  CHECK(audited(folder).incarnations >= 2);
}

TEST_CASE("a cancelled job with local steps goes on from its checkpoint, and not as an exact one") {
  Folder folder;
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.add("two");
  cluster.wait_for_nodes(2);
  {
    BackgroundJob job(cluster, local_job_in(folder));
    REQUIRE(job.wait_for_step(20));
    job.cancel.raise();
    const auto outcome = job.end();
    REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
    CHECK(outcome->end == TrainEnd::kCancelled);
  }
  TrainingSystem::Config other = local_job_in(folder);
  other.spec.consistency = {};
  const auto refused = cluster.coordinator().train(std::move(other), "job", {});
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().where == "consistency");
  cluster.kill("one");
  cluster.add("three", 2);
  cluster.wait_for_nodes(2);
  const auto outcome = cluster.coordinator().train(local_job_in(folder, 8), "job", {});
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  check_learnt(*outcome);
  audited(folder);
}

TEST_CASE("a drained node is done without, and a job that learns no more stops early") {
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.add("two");
  cluster.wait_for_nodes(2);
  Folder folder;
  BackgroundJob job(cluster, local_job_in(folder));
  REQUIRE(job.wait_for_step(8));
  cluster.coordinator().set_draining("one", true);
  const auto outcome = job.end();
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  check_learnt(*outcome);
  CHECK(outcome->best_validation_loss);
  CHECK_FALSE(outcome->best_weights.empty());
  cluster.coordinator().set_draining("one", false);
  Folder other;
  TrainingSystem::Config config = local_job_in(other);
  config.spec.learning_rate = config.spec.min_learning_rate = 0;
  config.spec.patience = 1;
  const auto stopped = cluster.coordinator().train(std::move(config), "other", {});
  REQUIRE_MESSAGE(stopped.ok(), stopped.error().message());
  CHECK(stopped->end == TrainEnd::kEarlyStop);
  CHECK(stopped->steps == 20);
}

TEST_CASE("a loss that is not finite ends a job with local steps, and says where") {
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.add("two");
  cluster.wait_for_nodes(2);
  Folder folder;
  TrainingSystem::Config config = local_job_in(folder);
  config.spec.learning_rate = config.spec.min_learning_rate = 1000;
  config.spec.clip_norm = 0;
  config.spec.warmup_steps = 0;
  config.initial_weights.assign(ParameterLayout(config.spec.model).elements(), 1e30f);
  const auto outcome = cluster.coordinator().train(std::move(config), "job", {});
  REQUIRE_FALSE(outcome.ok());
  CHECK(outcome.error().code == ErrorCode::kInvalidArgument);
  CHECK(outcome.error().what.find("not finite") != std::string::npos);
}

TEST_CASE("a job in one process has nobody to be apart from") {
  Folder folder;
  const auto refused = TrainingSystem::start(local_job_in(folder));
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().where == "consistency");
}
