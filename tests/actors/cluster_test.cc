// Jobs over several nodes: the same bits as in one process, whoever is lost when.
#include <cstdio>

#include "in_process_cluster.h"
#include "train/checkpoint.h"

using namespace fastserve;

namespace {

Log log_of_test() {
  if (std::getenv("FASTSERVE_TEST_LOG") == nullptr) return {};
  return Log([](LogLevel, std::string_view line) {
    std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
  });
}

TrainingSystem::Config job_in(const Folder& folder, Precision precision = Precision::kBFloat16) {
  TrainingSystem::Config config = real_job(1, 1, precision);
  config.checkpoint_directory = folder.path;
  config.log = log_of_test();
  return config;
}

[[maybe_unused]] uint64_t expected_bits(Precision precision = Precision::kBFloat16) {
  return hash_of(run(real_job(1, 1, precision)).weights);
}

}  // namespace

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
