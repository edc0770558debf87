// Threads that wait for a card while others give it work.
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "plugin_on_stand_in.h"

using namespace fastserve;

TEST_CASE("a thread that waits for the card keeps no other from giving it work") {
  card().reset();
  auto device = plugin().make_device(0, {});
  REQUIRE(device.ok());
  auto buffer = (*device)->allocate(4096);
  auto pinned = (*device)->allocate_host(4096);
  REQUIRE((buffer.ok() && pinned.ok()));
  const auto give = [&, at = (*buffer)->data(), host = (*pinned)->data()] {
    (*device)->copy_in_beside(at, host, 64);
    (*device)->copy_in_async(at, host, 64);
    (*device)->copy_out_beside(host, at, 64);
    (*device)->mark();
    return (*device)->copy_out_async(host, at, 64);
  };
  const Device::CopyMark copied = give();
  const DeviceTicket marked = (*device)->mark();
  card().stall();
  std::atomic<int> waited = 0;
  std::vector<std::jthread> waiters;
  constexpr int kWaiters = 8;
  for (int i = 0; i < kWaiters; i += 2) {
    waiters.emplace_back([&] {
      CHECK((*device)->wait_for(copied));
      ++waited;
    });
    waiters.emplace_back([&] {
      (*device)->wait(marked);
      ++waited;
    });
  }
  for (int looks = 0; card().waiting() < kWaiters && looks < 2000; ++looks)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  CHECK(card().waiting() == kWaiters);
  const Device::CopyMark later = give();
  CHECK(later > copied);
  CHECK(waited == 0);
  card().reset();
  waiters.clear();
  CHECK(waited == kWaiters);
  // What came later nobody has waited for. Of a lost card it is zeros.
  auto* const byte = static_cast<char*>((*pinned)->data());
  *byte = 7;
  card().reset();
  card().fail(0, 719, true);
  CHECK_FALSE((*device)->wait_for(later));
  CHECK(*byte == 0);
  card().reset();
}
