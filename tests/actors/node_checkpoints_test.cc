// Jobs whose checkpoints lie in pieces on their nodes' disks: the same bits, whoever is lost when,
// and whichever disk.
#include <cmath>
#include <fstream>

#include "background_job.h"
#include "train/checkpoint.h"

using namespace fastserve;

namespace {

/// What is logged, also for a look at it.
struct Said {
  Log log() {
    return Log([this](LogLevel level, std::string_view line) {
      if (const Log test = log_of_test(); level >= LogLevel::kWarning)
        test.warning(line);
      else
        test.info(line);
      std::lock_guard lock(mutex);
      lines += std::string(line) + "\n";
    });
  }
  bool has(const std::string& text) {
    std::lock_guard lock(mutex);
    return lines.find(text) != std::string::npos;
  }
  std::mutex mutex;
  std::string lines;
};

TrainingSystem::Config job_in(const Folder& folder, int64_t steps = 60) {
  TrainingSystem::Config config = real_job(1, 1, Precision::kBFloat16);
  config.checkpoint_directory = folder.path;
  config.log = log_of_test();
  config.spec.steps = steps;
  config.spec.checkpoint_every = 5;
  config.spec.evaluate_every = 10;
  config.spec.node_checkpoints = true;
  return config;
}

struct Bits {
  uint64_t weights, best;
};
Bits bits_of_one_process(int64_t steps = 60) {
  Folder folder;
  TrainingSystem::Config config = job_in(folder, steps);
  const TrainOutcome outcome = run(std::move(config));
  return {hash_of(outcome.weights), hash_of(outcome.best_weights)};
}

void check_bits(const Result<TrainOutcome>& outcome, const Bits& expected) {
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(hash_of(outcome->weights) == expected.weights);
  CHECK(hash_of(outcome->best_weights) == expected.best);
  CHECK(outcome->checkpoint.ok());
}

std::vector<Path> pieces_of(const Path& node) {
  std::vector<Path> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(node, ignored))
    if (entry.path().extension() == ".piece") found.push_back(entry.path());
  return found;
}

/// (incarnation, step) of what a job's folder names; the job may be at work.
std::vector<std::pair<uint64_t, int64_t>> kept_in(const Path& folder) {
  std::vector<std::pair<uint64_t, int64_t>> kept;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (const auto checkpoint = CheckpointDirectory::load(entry.path());
        checkpoint.ok() && checkpoint->pieces)
      kept.emplace_back(checkpoint->pieces->incarnation, checkpoint->pieces->step);
  return kept;
}

/// Nodes remove when they hear of it.
bool becomes(size_t pieces, const Path& node) {
  for (int i = 0; i < 500 && pieces_of(node).size() != pieces; i++)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  return pieces_of(node).size() == pieces;
}

}  // namespace

TEST_CASE("nodes write the checkpoints, each its own pieces and copies of the next one's") {
  const Bits expected = bits_of_one_process();
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.add("two", 2);
  cluster.wait_for_nodes(2);
  Folder folder;
  const auto outcome = cluster.coordinator().train(job_in(folder), "job", {});
  check_bits(outcome, expected);
  uint64_t bytes = 0;  // the coordinator has manifests, and no floats
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.path))
    if (entry.is_regular_file()) bytes += entry.file_size();
  CHECK(bytes < 20'000);
  auto directory = CheckpointDirectory::open(folder.path).value();
  const auto all = directory->all();
  REQUIRE(all.size() == 2);
  const PieceSet set = *CheckpointDirectory::load(all.front()).value().pieces;
  CHECK(set.step == 60);
  CHECK(set.best);
  for (const PieceSet::Piece& piece : set.pieces) CHECK(piece.holders.size() == 2);
  // The two that are kept, on both nodes: older ones have been pruned.
  for (const char* node : {"one", "two"}) CHECK(becomes(2 * set.pieces.size(), cluster.disk(node)));
  cluster.coordinator().forget_pieces("job");
  CHECK(becomes(0, cluster.disk("two")));
}

TEST_CASE("a node is lost with its disk: the job goes on from the copies, on other nodes") {
  const Bits expected = bits_of_one_process();
  Said said;
  InProcessCluster cluster(said.log());
  for (const char* name : {"one", "two", "three"}) cluster.add(name);
  cluster.wait_for_nodes(3);
  Folder folder;
  TrainingSystem::Config config = job_in(folder);
  config.log = said.log();
  BackgroundJob job(cluster, std::move(config), 32);
  REQUIRE(job.wait_for_step(32));
  cluster.kill("two");
  cluster.lose_disk("two");
  job.go_on();
  const auto outcome = job.end();
  check_bits(outcome, expected);
  CHECK(job.run().incarnation >= 2);
  CHECK(job.run().replayed_steps < 32);  // from a checkpoint, and not from the beginning
}

TEST_CASE("a node that has joined keeps copies, and the job outlives the disk that it began on") {
  constexpr int64_t kSteps = 300;
  const Bits expected = bits_of_one_process(kSteps);
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.wait_for_nodes(1);
  Folder folder;
  BackgroundJob job(cluster, job_in(folder, kSteps), 8);
  REQUIRE(job.wait_for_step(8));
  cluster.add("two");
  const auto in_job = [&] {
    for (const NodeStatus& node : cluster.coordinator().nodes())
      if (node.name == "two" && node.job == "job") return true;
    return false;
  };
  for (int i = 0; i < 1000 && !in_job(); i++)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  REQUIRE(in_job());
  job.go_on();
  const auto on_two = [&] {
    for (const auto& [incarnation, step] : kept_in(folder.path))
      for (const Path& piece : pieces_of(cluster.disk("two")))
        if (piece.string().find(std::to_string(step) + "-") != std::string::npos) return true;
    return false;
  };
  REQUIRE(job.wait_for_step(60));
  for (int i = 0; i < 500 && !on_two(); i++)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK(on_two());
  cluster.kill("one");
  cluster.lose_disk("one");
  const auto outcome = job.end();
  check_bits(outcome, expected);
}

TEST_CASE("all nodes come back, or others in their number: the job goes on from their disks") {
  const Bits expected = bits_of_one_process();
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.add("two");
  cluster.wait_for_nodes(2);
  Folder folder;
  BackgroundJob job(cluster, job_in(folder), 22);
  REQUIRE(job.wait_for_step(22));
  cluster.kill("one");
  cluster.kill("two");
  job.go_on();
  cluster.add("other", 2);  // has nothing of it
  for (int i = 0; i < 1000 && job.run().waiting_for.find("with pieces") == std::string::npos; i++)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK(job.run().waiting_for == "nodes one, two, with pieces of its checkpoint");
  cluster.add("one", 3);
  const auto outcome = job.end();
  check_bits(outcome, expected);
  CHECK(job.run().incarnation >= 2);
}

TEST_CASE("a damaged piece is had from its copy; without one the checkpoint before is taken") {
  const Bits expected = bits_of_one_process();
  for (const int copies : {2, 1}) {
    CAPTURE(copies);
    Folder folder;
    Said said;
    InProcessCluster cluster(said.log());
    const auto config = [&] {
      TrainingSystem::Config made = job_in(folder);
      made.spec.checkpoint_copies = copies;
      made.log = said.log();
      return made;
    };
    cluster.add("one");
    cluster.add("two");
    cluster.wait_for_nodes(2);
    {
      BackgroundJob job(cluster, config(), 22);
      REQUIRE(job.wait_for_step(22));
      job.cancel.raise();
      job.go_on();
      REQUIRE(job.end().ok());
    }
    const int64_t newest = CheckpointDirectory::newest_state(folder.path)->steps_done;
    for (const Path& piece : pieces_of(cluster.disk("one"))) {
      if (piece.string().find("step-0000000" + std::to_string(newest) + "-") == std::string::npos)
        continue;
      std::fstream file(piece, std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(100);
      file.put('\x55');
    }
    check_bits(cluster.coordinator().train(config(), "job", {}), expected);
    CHECK(said.has("node one cannot bring its piece of step " + std::to_string(newest)));
    CHECK(said.has("the checkpoint of step " + std::to_string(newest) + " is lost") ==
          (copies == 1));
  }
}

TEST_CASE("jobs whose nodes are apart keep their checkpoints on them, too, and go on from them") {
  for (const Consistency consistency :
       {Consistency{Consistency::Kind::kLocal, 3}, Consistency{Consistency::Kind::kStale, 2}}) {
    CAPTURE(consistency.text());
    Folder folder;
    InProcessCluster cluster(log_of_test());
    cluster.add("one");
    cluster.add("two");
    cluster.wait_for_nodes(2);
    const auto config = [&] {
      TrainingSystem::Config made = job_in(folder);
      made.spec.consistency = consistency;
      return made;
    };
    {
      BackgroundJob job(cluster, config(), 22);
      REQUIRE(job.wait_for_step(22));
      job.cancel.raise();
      job.go_on();
      const auto outcome = job.end();
      REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
      CHECK(outcome->checkpoint.ok());
    }
    const int64_t stopped_at = CheckpointDirectory::newest_state(folder.path)->steps_done;
    CHECK(stopped_at >= 20);
    cluster.kill("two");
    cluster.lose_disk("two");
    cluster.add("three", 2);
    cluster.wait_for_nodes(2);
    const auto outcome = cluster.coordinator().train(config(), "job", {});
    REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
    CHECK(outcome->steps == 60);
    CHECK(static_cast<int64_t>(outcome->losses.size()) == 60 - stopped_at);
    CHECK(std::isfinite(*outcome->validation_loss));
    CHECK_FALSE(outcome->best_weights.empty());
  }
}

TEST_CASE("no checkpoint can be had: the job says whose disks it needs, and begins nothing") {
  Folder folder;
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.wait_for_nodes(1);
  {
    BackgroundJob job(cluster, job_in(folder), 12);
    REQUIRE(job.wait_for_step(12));
    job.cancel.raise();
    job.go_on();
    REQUIRE(job.end().ok());
  }
  cluster.kill("one");
  cluster.lose_disk("one");
  cluster.add("one");
  cluster.wait_for_nodes(1);
  const auto outcome = cluster.coordinator().train(job_in(folder), "job", {});
  REQUIRE_FALSE(outcome.ok());
  CHECK(outcome.error().code == ErrorCode::kNotFound);
  CHECK(
      outcome.error().what.starts_with("cannot go on: none of its checkpoints can be had: of "
                                       "step 1"));
  CHECK(outcome.error().hint.find("node-checkpoints") != std::string::npos);
  CHECK(CheckpointDirectory::holds_any(folder.path));
  // Nor can it in one process.
  const auto alone = TrainingSystem::start(job_in(folder));
  REQUIRE_FALSE(alone.ok());
  CHECK(alone.error().what == "lies in pieces on the nodes of its cluster (one)");
}

TEST_CASE("a job moves its checkpoints from the coordinator to its nodes and back") {
  const Bits expected = bits_of_one_process();
  Folder folder;
  InProcessCluster cluster(log_of_test());
  cluster.add("one");
  cluster.add("two");
  cluster.wait_for_nodes(2);
  int64_t stop_at = 12;
  for (const bool nodes : {false, true}) {
    TrainingSystem::Config config = job_in(folder);
    config.spec.node_checkpoints = nodes;
    BackgroundJob job(cluster, std::move(config), stop_at);
    REQUIRE(job.wait_for_step(stop_at));
    job.cancel.raise();
    job.go_on();
    const auto outcome = job.end();
    REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
    CHECK(outcome->end == TrainEnd::kCancelled);
    stop_at = 30;
  }
  TrainingSystem::Config config = job_in(folder);
  config.spec.node_checkpoints = false;
  check_bits(cluster.coordinator().train(std::move(config), "job", {}), expected);
  check_bits(TrainingSystem::start(job_in(folder)).value()->wait(), expected);
}

TEST_CASE("a disk that takes no piece is named, and the job goes on without that checkpoint") {
  Said said;
  InProcessCluster cluster(said.log());
  cluster.add("one");
  cluster.add("two");
  cluster.wait_for_nodes(2);
  const Path disk = cluster.disk("two");
  std::filesystem::remove_all(disk);
  std::ofstream(disk) << "a file where a folder should be";
  Folder folder;
  TrainingSystem::Config config = job_in(folder, 20);
  config.log = said.log();
  const auto outcome = cluster.coordinator().train(std::move(config), "job", {});
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  CHECK(hash_of(outcome->weights) == bits_of_one_process(20).weights);
  CHECK_FALSE(outcome->checkpoint.ok());
  CHECK(outcome->checkpoint.error().where.starts_with("node two"));
  CHECK(said.has("the checkpoint was not written: "));
  CHECK_FALSE(CheckpointDirectory::holds_any(folder.path));
}
