#include "gpu/plan_cache.h"

#include <doctest/doctest.h>
#include <unistd.h>

using namespace fastserve;
using gpu::PlanBytes;
using gpu::PlanCache;

namespace {

constexpr PlanBytes kPlan = {1, 2, 3, 0xffffffffffffffff, 5, 6, 7, 0x123456789abcdef0};

struct Folder {
  Path path =
      std::filesystem::temp_directory_path() / ("fastserve_plans_" + std::to_string(::getpid()));
  Folder() { std::filesystem::remove_all(path); }
  ~Folder() { std::filesystem::remove_all(path); }
};

PlanCache opened(const std::string& text, const std::string& library = "lt-13.1.0",
                 const std::string& card = "NVIDIA H200 9.0") {
  PlanCache cache({}, library, card);
  cache.take(text);
  return cache;
}

std::string one_plan() {
  PlanCache cache({}, "lt-13.1.0", "NVIDIA H200 9.0");
  cache.put("forward 768 768", kPlan);
  return cache.text();
}

}  // namespace

TEST_CASE("a plan found once is there at the next start") {
  const Folder folder;
  {
    PlanCache cache(folder.path / "gpu", "lt-13.1.0", "NVIDIA H200 9.0");
    CHECK(cache.size() == 0);
    cache.put("forward 768 768", kPlan);
  }
  const PlanCache again(folder.path / "gpu", "lt-13.1.0", "NVIDIA H200 9.0");
  REQUIRE(again.find("forward 768 768"));
  CHECK(*again.find("forward 768 768") == kPlan);
  CHECK_FALSE(again.find("forward 768 769"));
}

TEST_CASE("a plan of another library version or another card is not used") {
  CHECK(opened(one_plan()).size() == 1);
  CHECK(opened(one_plan(), "lt-13.2.0").size() == 0);
  CHECK(opened(one_plan(), "lt-13.1.0", "NVIDIA H100 9.0").size() == 0);
}

TEST_CASE("a plan file with any byte changed, or cut anywhere, is an empty cache") {
  const std::string whole = one_plan();
  for (size_t i = 0; i < whole.size(); i++) {
    std::string damaged = whole;
    damaged[i] = static_cast<char>(damaged[i] ^ 1);
    CHECK_MESSAGE(opened(damaged).size() == 0, "byte " << i);
    CHECK_MESSAGE(opened(whole.substr(0, i)).size() == 0, "cut at " << i);
  }
}

TEST_CASE("a folder that cannot be written costs the plans of this process alone") {
  PlanCache cache("/proc/nowhere", "lt-13.1.0", "NVIDIA H200 9.0");
  cache.put("forward 768 768", kPlan);
  CHECK(cache.find("forward 768 768"));
}
