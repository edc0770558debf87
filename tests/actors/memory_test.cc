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
  const ProcessMemory before = process_memory();
  CHECK(before.now > 0);
  CHECK(before.peak >= before.now);
  const std::vector<char> taken(64 << 20, 1);
  CHECK(process_memory().peak >= before.now + taken.size() / 2);
  CHECK(memory_at_hand().value() > 0);
}
