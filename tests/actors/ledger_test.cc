// The ledger that jobs keep, in one process and over nodes.
#include "in_process_cluster.h"
#include "train/ledger_audit.h"
#include "train/sampler.h"

using namespace fastserve;

namespace {

TrainingSystem::Config audited_job(const Folder& folder, int trainers) {
  TrainingSystem::Config config = real_job(trainers, 1, Precision::kBFloat16);
  config.checkpoint_directory = folder.path / "checkpoints";
  config.ledger = folder.path / "ledger";
  return config;
}

LedgerAudit audited(const Folder& folder, const TrainingSystem::Config& config, int64_t steps) {
  const std::string bytes = read_file(folder.path / "ledger").value();
  auto found = audit(std::as_bytes(std::span(bytes)), config.spec, steps, 0, "ledger");
  REQUIRE_MESSAGE(found.ok(), found.error().message());
  return *found;
}

}  // namespace

TEST_CASE("a job in one process names its trainers in its ledger, and passes its audit") {
  Folder folder;
  const TrainOutcome outcome = run(audited_job(folder, 2));
  const LedgerAudit found = audited(folder, audited_job(folder, 2), outcome.steps);
  CHECK(found.incarnations == 1);
  CHECK(found.ahead == 0);
  int64_t in_all = 0;
  for (const auto& [name, count] : found.microbatches) {
    CHECK((name == "trainer-0" || name == "trainer-1"));
    in_all += count;
  }
  CHECK(in_all % outcome.steps == 0);
}

TEST_CASE("a job over nodes names the nodes in its ledger, and passes its audit when resumed") {
  Folder folder;
  TrainingSystem::Config config = audited_job(folder, 1);
  const int64_t steps = config.spec.steps;
  InProcessCluster cluster;
  cluster.add("one");
  cluster.add("two", 1, {"trainer"});
  cluster.wait_for_nodes(2);
  for (const int64_t until : {steps / 2, steps}) {
    config = audited_job(folder, 1);
    config.spec.steps = until;
    auto outcome = cluster.coordinator().train(config, "job", {});
    REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
    CHECK(outcome->steps == until);
  }
  const LedgerAudit found = audited(folder, config, steps);
  CHECK(found.incarnations >= 2);
  CHECK(found.microbatches.at("one") > 0);
  CHECK(found.microbatches.at("two") > 0);
}
