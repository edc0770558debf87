// Jobs whose nodes go through the steps at their own pace.
#include "background_job.h"
#include "train/ledger_audit.h"

using namespace fastserve;

namespace {

TrainingSystem::Config loose_job_in(const Folder& folder, const char* consistency,
                                    const char* gradients = "fp32", const char* back = "exact") {
  TrainingSystem::Config config = real_job(1, 1, Precision::kBFloat16);
  config.checkpoint_directory = folder.path / "checkpoints";
  config.ledger = folder.path / "ledger";
  config.log = log_of_test();
  config.spec.steps = 60;
  config.spec.checkpoint_every = 15;
  config.spec.evaluate_every = 10;
  config.spec.consistency = Consistency::parse(consistency).value();
  config.spec.gradients = GradientFormat::parse(gradients).value();
  config.spec.weights_back = WeightsBack::parse(back).value();
  return config;
}

void check_learnt(const TrainOutcome& outcome) {
  static const double exact = [] {
    Folder folder;
    return *run(loose_job_in(folder, "exact")).validation_loss;
  }();
  CHECK(outcome.end == TrainEnd::kAllSteps);
  CHECK(outcome.steps == 60);
  CHECK(*outcome.validation_loss == doctest::Approx(exact).epsilon(0.05));
}

LedgerAudit audited(const Folder& folder) {
  const TrainingSystem::Config config = loose_job_in(folder, "async");
  const std::string bytes = read_file(folder.path / "ledger").value();
  auto found = audit(std::as_bytes(std::span(bytes)), config.spec, 60, 0, "ledger");
  REQUIRE_MESSAGE(found.ok(), found.error().message());
  return *found;
}

}  // namespace

TEST_CASE("nodes at their own pace learn as well, and each sample counts once") {
  for (const auto& [consistency, gradients, back] : {std::tuple{"stale:1", "fp32", "exact"},
                                                     {"stale:4", "int8", "bf16"},
                                                     {"async", "bf16", "exact"}}) {
    CAPTURE(consistency);
    InProcessCluster cluster(log_of_test());
    cluster.add("one", 2);
    cluster.add("two", 1);
    cluster.wait_for_nodes(2);
    Folder folder;
    auto outcome =
        cluster.coordinator().train(loose_job_in(folder, consistency, gradients, back), "job", {});
    REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
    check_learnt(*outcome);
    const LedgerAudit found = audited(folder);
    CHECK(found.microbatches.at("one") > 0);
    CHECK(found.microbatches.at("two") > 0);
  }
}

TEST_CASE("a node is lost and others join while nobody waits for anybody") {
  InProcessCluster cluster(log_of_test());
  cluster.add("keeper");
  cluster.add("worker", 1, {"trainer"});
  cluster.wait_for_nodes(2);
  Folder folder;
  BackgroundJob job(cluster, loose_job_in(folder, "async"));
  REQUIRE(job.wait_for_step(6));
  cluster.kill("worker");
  REQUIRE(job.wait_for_step(12));
  cluster.add("worker", 1, {"trainer"});
  cluster.add("late", 2, {"trainer"});
  const auto outcome = job.end();
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  check_learnt(*outcome);
  CHECK(job.run().incarnation == 1);
  audited(folder);
}

TEST_CASE("a cancelled job at its nodes' own pace goes on where they have met") {
  Folder folder;
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.add("two");
  cluster.wait_for_nodes(2);
  {
    BackgroundJob job(cluster, loose_job_in(folder, "stale:3"));
    REQUIRE(job.wait_for_step(18));
    job.cancel.raise();
    const auto outcome = job.end();
    REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
    CHECK(outcome->end == TrainEnd::kCancelled);
    CHECK(outcome->steps >= 18);
  }
  BackgroundJob job(cluster, loose_job_in(folder, "async"), 35);
  REQUIRE(job.wait_for_step(35));
  cluster.kill("two");  // which holds parameters
  job.go_on();
  const auto outcome = job.end();
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  check_learnt(*outcome);
  CHECK(audited(folder).incarnations >= 3);
}

TEST_CASE("what cannot be with nodes at their own pace is refused with what can") {
  Folder folder;
  auto config = loose_job_in(folder, "async", "fp32", "int8-delta");
  CHECK(config.spec.validate().error().where == "weights_back");
  config = loose_job_in(folder, "stale:2");
  config.spec.precision = Precision::kFloat16;
  CHECK(config.spec.validate().error().where == "precision");
}
