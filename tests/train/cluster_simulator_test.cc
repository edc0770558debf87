// A job over a cluster in which everything goes wrong ends in the bits of one process, and with a
// clean audit. FASTSERVE_SIMULATE=SEED runs one seed alone and says what happens;
// FASTSERVE_SIMULATE=FIRST-END runs those seeds.
#include "cluster_simulator.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "simulated_cluster.h"

using namespace fastserve;
using namespace fastserve::simulated;

namespace {

TrainSpec simulated_spec() {
  TrainSpec spec = made_up_spec();
  spec.steps = 10;
  spec.evaluate_every = 4;
  spec.checkpoint_every = 3;
  return spec;
}

Common made_common(Broken broken = {}, Consistency consistency = {}, bool node_checkpoints = false,
                   int replicas = 0) {
  Common common;
  common.spec = simulated_spec();
  common.spec.replicas = replicas;
  common.spec.consistency = consistency;
  common.plan = plan_training(common.spec, {1, 1, 1}, 2);
  common.data = made_up_dataset(5000, 60);
  common.sampler.emplace(
      common.data->train,
      Sampler::Shape{common.spec.block, common.plan.sequences, common.plan.microbatches},
      common.spec.seed);
  common.evaluation.emplace(common.data->validation, common.spec.block, 0, common.plan.max_rows);
  common.broken = broken;
  common.node_checkpoints = node_checkpoints;
  return common;
}

uint64_t hash_of(const std::vector<float>& weights) {
  return hash64(std::as_bytes(std::span(weights)));
}

uint64_t undisturbed() {
  SimulatedCluster cluster({.spec = simulated_spec()});
  CHECK(cluster.run().ok());
  return cluster.backend.weights_hash();
}

/// Empty when all is well. `expected`: of the weights, when the job promises them.
std::string trouble_of(uint64_t seed, const Common& common, std::optional<uint64_t> expected,
                       Covered& covered, bool told = false) {
  static const Path folder = std::filesystem::exists("/dev/shm")  // it is synced often
                                 ? Path("/dev/shm")
                                 : std::filesystem::temp_directory_path();
  const Path ledger =
      folder / ("fastserve-ledger-" + std::to_string(::getpid()) + "-" + std::to_string(seed));
  Cluster cluster(seed, common, ledger, told);
  std::string trouble = cluster.run();
  covered.older += cluster.covered.older;
  if (trouble.empty() && cluster.lost()) {
    covered.lost++;
    return "";
  }
  if (trouble.empty() && expected && hash_of(cluster.result().weights) != *expected)
    trouble = "the weights are other bits";
  const auto finite = [](float weight) { return std::isfinite(weight); };
  if (trouble.empty() && !std::ranges::all_of(cluster.result().weights, finite))
    trouble = "the weights are not finite";
  if (trouble.empty() && cluster.result().state.updates != common.spec.steps)
    trouble = "some steps were not applied";
  if (trouble.empty()) {
    const auto audited = cluster.audited();
    if (!audited.ok())
      trouble = audited.error().message();
    else
      cluster.covered.replayed = audited->replayed_steps,
      cluster.covered.repeated = audited->repeated_units;
  }
  const Covered& here = cluster.covered;
  covered.crashes += here.crashes;
  covered.stops += here.stops;
  covered.breaks += here.breaks;
  covered.coordinators += here.coordinators;
  covered.joins += here.joins;
  covered.jumps += here.jumps;
  covered.stragglers += here.stragglers;
  covered.incarnations += here.incarnations;
  covered.replayed += here.replayed;
  covered.repeated += here.repeated;
  covered.finished += here.finished;
  covered.promotions += here.promotions;
  covered.copies += here.copies;
  covered.broken_off += here.broken_off;
  covered.events += here.events;
  return trouble;
}

/// The first of the seeds that ends badly, and how.
std::optional<std::string> first_trouble(Broken broken, uint64_t seeds,
                                         Consistency consistency = {},
                                         bool node_checkpoints = false, int replicas = 0) {
  const Common common = made_common(broken, consistency, node_checkpoints, replicas);
  std::optional<uint64_t> expected;
  if (consistency.exact()) expected = undisturbed();
  Covered covered;
  for (uint64_t seed = 0; seed < seeds; seed++)
    if (const std::string trouble = trouble_of(seed, common, expected, covered); !trouble.empty())
      return "seed " + std::to_string(seed) + ": " + trouble;
  return std::nullopt;
}

/// Runs the seeds; FASTSERVE_SIMULATE names others.
Covered check_seeds(const Common& common, std::optional<uint64_t> expected, uint64_t end) {
  uint64_t first = 0;
  if (const char* wanted = std::getenv("FASTSERVE_SIMULATE")) {
    char* rest = nullptr;
    first = std::strtoull(wanted, &rest, 10);
    end = *rest == '-' ? std::strtoull(rest + 1, nullptr, 10) : first + 1;
  }
  Covered covered;
  for (uint64_t seed = first; seed < end; seed++) {
    const std::string trouble = trouble_of(seed, common, expected, covered, end == first + 1);
    CHECK_MESSAGE(trouble.empty(), "seed ", seed, ": ", trouble, "; FASTSERVE_SIMULATE=", seed,
                  " runs it alone");
  }
  MESSAGE(covered.events, " events; ", covered.incarnations, " incarnations, ", covered.replayed,
          " steps replayed, ", covered.repeated, " units repeated; ", covered.crashes,
          " crashes of nodes, ", covered.coordinators, " of coordinators, ", covered.stops,
          " stops, ", covered.breaks, " broken connections, ", covered.joins, " joins, ",
          covered.stragglers, " changes of pace, ", covered.jumps, " jumps of clocks; ",
          covered.older, " older checkpoints taken, ", covered.lost, " jobs left without one; ",
          covered.promotions, " times others led, ", covered.copies, " copies made");
  if (end - first < 1000 || common.one_at_a_time) return covered;
  CHECK(covered.incarnations > 2 * static_cast<int64_t>(end - first));
  CHECK(covered.replayed > 0);
  CHECK(covered.repeated > 0);
  for (const int count : {covered.crashes, covered.coordinators, covered.stops, covered.breaks,
                          covered.joins, covered.stragglers, covered.jumps})
    CHECK(count > 0.12 * static_cast<double>(end - first));
  return covered;
}

}  // namespace

TEST_CASE("whatever crashes, stops, breaks or is late, a job ends in the same bits and adds up") {
  check_seeds(made_common(), undisturbed(), 4000);
}

TEST_CASE("whatever goes wrong, checkpoints in pieces on nodes' disks outlive it, and one disk") {
  check_seeds(made_common({}, {}, true), undisturbed(), 2000);
  check_seeds(made_common({}, {Consistency::Kind::kLocal, 3}, true), std::nullopt, 500);
}

TEST_CASE("the simulator notices when a checkpoint counts on pieces that no disk has") {
  const auto trouble = first_trouble({.pieces_presumed = true}, 1500, {}, true);
  CHECK(trouble);
  if (trouble) MESSAGE(*trouble);
}

TEST_CASE(
    "whatever goes wrong between local steps, each displacement counts once and each sample") {
  const Consistency three{Consistency::Kind::kLocal, 3};
  check_seeds(made_common({}, three), std::nullopt, 1500);
}

TEST_CASE("whatever goes wrong, nodes at their own pace apply each sample once on every shard") {
  check_seeds(made_common({}, {Consistency::Kind::kStale, 2}), std::nullopt, 1000);
  check_seeds(made_common({}, {Consistency::Kind::kAsync, 0}), std::nullopt, 1000);
}

TEST_CASE("whatever goes wrong, a job whose shards are held twice ends in the same bits") {
  const Covered covered = check_seeds(made_common({}, {}, false, 1), undisturbed(), 1500);
  if (covered.finished >= 100) CHECK(covered.promotions > 0);
  if (covered.finished >= 100) CHECK(covered.copies > 0);
  check_seeds(made_common({}, {}, false, 2), undisturbed(), 500);
}

TEST_CASE("one node at a time crashes: no step of a job whose shards are held twice is replayed") {
  Common common = made_common({}, {}, false, 1);
  common.one_at_a_time = true;
  const Covered covered = check_seeds(common, undisturbed(), 1000);
  CHECK(covered.replayed == 0);
  CHECK(covered.broken_off == 0);
  if (covered.finished < 100) return;
  CHECK(covered.crashes > covered.finished);
  CHECK(covered.promotions > covered.crashes / 2);
  CHECK(covered.copies > covered.crashes);
}

TEST_CASE("the simulator notices when displacements count before they have arrived") {
  const Consistency three{Consistency::Kind::kLocal, 3};
  for (const Broken broken : {Broken{.ledger_unsynced = true}, Broken{.arrivals_presumed = true}}) {
    const auto trouble = first_trouble(broken, 1500, three);
    CHECK(trouble);
    if (trouble) MESSAGE(*trouble);
  }
  CHECK(first_trouble({.arrivals_presumed = true}, 1500, {Consistency::Kind::kAsync, 0}));
}

TEST_CASE("the simulator notices when a copy of a shard is not what it is taken for") {
  for (const Broken broken : {Broken{.copies_presumed = true}, Broken{.promoted_silent = true}}) {
    const auto trouble = first_trouble(broken, 20000, {}, false, 1);
    CHECK(trouble);
    if (trouble) MESSAGE(*trouble);
  }
}

TEST_CASE("the simulator notices when a rule of the protocol is broken") {
  for (const Broken broken :
       {Broken{.losses_unheard = true}, Broken{.moments_forgotten = true},
        Broken{.ledger_unsynced = true}, Broken{.weights_in_any_order = true},
        Broken{.units_before_weights = true}, Broken{.overtaken_stay = true}}) {
    const auto trouble = first_trouble(broken, 1000);
    CHECK(trouble);
    if (trouble) MESSAGE(*trouble);
  }
}
