#include <doctest/doctest.h>

#include <atomic>
#include <cstdint>
#include <numeric>
#include <thread>
#include <vector>

#include "cpu/host_memory.h"
#include "cpu/lane_pool.h"

namespace fastserve {
namespace {

TEST_CASE("every item is done exactly once, whatever the number of lanes and items") {
  for (int lanes : {1, 2, 3, 7}) {
    LanePool pool(lanes);
    REQUIRE(pool.lanes() == lanes);
    for (int64_t items : {0, 1, 2, 3, 17, 1000}) {
      std::vector<int> times(static_cast<size_t>(items), 0);  // plain ints: a race shows in TSan
      std::atomic<bool> lane_in_range{true};
      pool.run(items, [&](int64_t item, int lane) {
        times[static_cast<size_t>(item)]++;
        if (lane < 0 || lane >= lanes) lane_in_range = false;
      });
      CHECK(lane_in_range);
      CHECK(std::accumulate(times.begin(), times.end(), int64_t{0}) == items);
      for (int t : times) REQUIRE(t == 1);
    }
  }
}

TEST_CASE("what one run writes, every lane of the next run sees") {
  LanePool pool(3);
  std::vector<int64_t> ring(64, 0), next(64, 0);
  for (int step = 0; step < 3000; step++) {
    pool.run(64, [&](int64_t i, int) {
      const auto at = static_cast<size_t>(i);
      next[at] = ring[(at + 1) % 64] + 1;
    });
    ring.swap(next);
  }
  for (int64_t value : ring) REQUIRE(value == 3000);
}

TEST_CASE("two lanes never hold the same lane number at once") {
  LanePool pool(4);
  std::vector<std::atomic<int>> inside(4);
  std::atomic<int> clashes{0};
  for (int step = 0; step < 200; step++)
    pool.run(50, [&](int64_t, int lane) {
      if (inside[static_cast<size_t>(lane)].fetch_add(1) != 0) clashes++;
      inside[static_cast<size_t>(lane)].fetch_sub(1);
    });
  CHECK(clashes == 0);
}

TEST_CASE("a run ends although a lane is busy elsewhere, and lanes that fell asleep come back") {
  LanePool pool(2);
  std::vector<int> done(8, 0);
  for (int round = 0; round < 5; round++) {
    // Long enough for the idle lane to give up spinning and sleep; no clock is asked.
    for (int i = 0; i < 20000; i++) std::this_thread::yield();
    pool.run(8, [&](int64_t i, int) { done[static_cast<size_t>(i)]++; });
  }
  for (int times : done) CHECK(times == 5);
}

TEST_CASE("one slow item does not hold back the other items") {
  LanePool pool(2);
  std::atomic<int> others{0};
  pool.run(100, [&](int64_t i, int) {
    if (i == 0)  // whoever has this item waits for all others, so another lane must do them
      while (others.load() < 99) std::this_thread::yield();
    else
      others.fetch_add(1);
  });
  CHECK(others == 99);
}

TEST_CASE("memory is zeroed and aligned, and an impossible size is an error with both figures") {
  for (size_t bytes : {size_t{1}, size_t{100}, size_t{3} << 20}) {
    auto memory = HostMemory::allocate(bytes, "a test");
    REQUIRE(memory.ok());
    CHECK(reinterpret_cast<uintptr_t>(memory->data()) % 64 == 0);
    for (size_t i = 0; i < bytes; i++) REQUIRE(memory->data()[i] == std::byte{0});
    memory->data()[bytes - 1] = std::byte{1};
  }
  auto refused = HostMemory::allocate(size_t{1} << 50, "the KV cache");
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::kResourceExhausted);
  CHECK(refused.error().what.starts_with("the KV cache needs "));
  CHECK(refused.error().what.find("is available") != std::string::npos);
}

}  // namespace
}  // namespace fastserve
