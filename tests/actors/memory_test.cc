#include "actors/memory.h"

#include <doctest/doctest.h>

#include <fstream>
#include <vector>

#include "jobs.h"

using namespace fastserve;

namespace {

void write_group(const Path& folder, const char* limit, const char* used, const char* cache) {
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "memory.max") << limit << "\n";
  std::ofstream(folder / "memory.current") << used << "\n";
  std::ofstream(folder / "memory.stat") << "anon 5\ninactive_file " << cache << "\nslab 3\n";
}

}  // namespace

TEST_CASE("a container's limit bounds the memory that can be had, its page cache left out") {
  Folder root;
  CHECK_FALSE(control_group_headroom(root.path, root.path).has_value());
  write_group(root.path / "a", "1000", "700", "200");
  write_group(root.path / "a/b", "max", "600", "0");
  CHECK(control_group_headroom(root.path, root.path / "a/b") == 500);
  write_group(root.path / "a/b", "650", "600", "0");
  CHECK(control_group_headroom(root.path, root.path / "a/b") == 50);
  write_group(root.path / "a/b", "100", "600", "0");
  CHECK(control_group_headroom(root.path, root.path / "a/b") == 0);
}

TEST_CASE("this process's memory is known, and grows by what it takes") {
  const uint64_t before = process_memory();
  CHECK(before > 0);
  const std::vector<char> taken(64 << 20, 1);
  CHECK(process_memory() >= before + taken.size() / 2);
  CHECK(memory_at_hand().value() > 0);
}

TEST_CASE("a job takes the memory that the arithmetic says, within 15 %") {
  for (const int trainers : {1, 3})
    for (const bool checkpoints : {false, true}) {
      CAPTURE(trainers);
      CAPTURE(checkpoints);
      Folder folder;
      TrainingSystem::Config config = real_job(trainers, 1, Precision::kBFloat16);
      ModelConfig& model = config.spec.model;
      model.hidden_size = 512;
      model.head_dim = 256;
      model.intermediate_size = 2048;
      model.layers = 6;
      config.spec.steps = 4;
      if (checkpoints) config.checkpoint_directory = folder.path;
      const TrainOutcome outcome = run(std::move(config));
      const auto ratio = static_cast<double>(outcome.peak_memory_bytes) /
                         static_cast<double>(outcome.planned_memory_bytes);
      CHECK(ratio > 0.85);
      CHECK(ratio < 1.15);
    }
}
