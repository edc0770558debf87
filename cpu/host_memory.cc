#include "cpu/host_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>

#include "base/file.h"

namespace fastserve {
namespace {

constexpr size_t kHugePage = size_t{2} << 20, kPage = 4096;
constexpr size_t kAlwaysTried = size_t{64} << 20;  // below this the kernel may answer for itself

uint64_t meminfo_available() {
  std::ifstream file("/proc/meminfo");
  std::string name;
  uint64_t kib = 0;
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    if (fields >> name >> kib && name == "MemAvailable:") return kib * 1024;
  }
  return std::numeric_limits<uint64_t>::max();
}

/// The tightest of the cgroup's limits that apply, less what is in use and cannot be dropped.
uint64_t cgroup_available() {
  uint64_t best = std::numeric_limits<uint64_t>::max();
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("0::")) continue;
    for (Path group = line.substr(3);; group = group.parent_path()) {
      const Path folder = Path("/sys/fs/cgroup") / group.relative_path();
      uint64_t limit = 0, anonymous = 0;
      std::ifstream max(folder / "memory.max"), stat(folder / "memory.stat");
      std::string key;
      if (max >> limit && stat >> key >> anonymous && key == "anon")
        best = std::min(best, limit - std::min(limit, anonymous));
      if (!group.has_relative_path()) break;
    }
  }
  return best;
}

}  // namespace

uint64_t available_memory() { return std::min(meminfo_available(), cgroup_available()); }

Result<HostMemory> HostMemory::allocate(size_t bytes, const char* what) {
  HostMemory memory;
  if (bytes == 0) return memory;
  const auto refused = [&](uint64_t available) {
    return Error{ErrorCode::kResourceExhausted,
                 std::string(what) + " needs " + human_bytes(bytes) + " of memory and " +
                     human_bytes(available) + " is available",
                 "", "free memory, or ask for less"};
  };
  if (bytes > kAlwaysTried) {
    const uint64_t available = available_memory();
    if (bytes > available) return refused(available);
  }
  memory.size_ = bytes;
  if (bytes < kHugePage) {
    const size_t rounded = (bytes + 63) / 64 * 64;
    memory.data_ = static_cast<std::byte*>(std::aligned_alloc(64, rounded));
    if (memory.data_ == nullptr) return refused(available_memory());
    std::memset(memory.data_, 0, rounded);
    return memory;
  }
  // From a border of huge pages on, but not up to one: what is past the last whole one is taken in
  // small pages, or a buffer of 5 MB would cost 6.
  const size_t rounded = (bytes + kPage - 1) / kPage * kPage;
  void* map = mmap(nullptr, rounded + kHugePage, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) return refused(available_memory());
  const auto start = reinterpret_cast<uintptr_t>(map);
  const uintptr_t aligned = (start + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t tail = start + rounded + kHugePage - (aligned + rounded);
  if (aligned != start) munmap(map, aligned - start);
  if (tail != 0) munmap(reinterpret_cast<void*>(aligned + rounded), tail);
  memory.data_ = reinterpret_cast<std::byte*>(aligned);
  memory.mapped_ = rounded;
  // Advice: without it things are only slower.
  madvise(memory.data_, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  return memory;
}

HostMemory::~HostMemory() {
  if (mapped_ != 0)
    munmap(data_, mapped_);
  else
    std::free(data_);
}

}  // namespace fastserve
