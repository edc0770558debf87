#include "train/turns.h"

#include <doctest/doctest.h>

#include <thread>
#include <vector>

using namespace fastserve;

TEST_CASE("of those who wait for a turn the lowest number has it next") {
  Turns turns(1);
  std::vector<size_t> order;  // guarded by the turn
  std::vector<std::thread> others;
  turns.take(7, [&] {
    for (const size_t number : {5, 1, 9})
      others.emplace_back([&, number] { turns.take(number, [&] { order.push_back(number); }); });
    while (turns.waiting() < others.size()) std::this_thread::yield();
  });
  for (std::thread& other : others) other.join();
  CHECK(order == std::vector<size_t>{1, 5, 9});
}
