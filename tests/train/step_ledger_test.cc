#include "train/step_ledger.h"

#include <doctest/doctest.h>

using namespace fastserve;
using namespace std::chrono_literals;

namespace {

std::vector<std::pair<uint32_t, uint32_t>> pairs(const std::vector<Handout>& given) {
  std::vector<std::pair<uint32_t, uint32_t>> out;
  for (const Handout& handout : given) out.emplace_back(handout.trainer.value, handout.unit);
  return out;
}
using Pairs = std::vector<std::pair<uint32_t, uint32_t>>;

}  // namespace

TEST_CASE("each trainer gets one unit to work on and one to follow") {
  StepLedger ledger(5);
  ledger.join({0});
  ledger.join({1});
  CHECK(pairs(ledger.hand_out(0ns)) == Pairs{{0, 0}, {1, 1}, {0, 2}, {1, 3}});
  CHECK(ledger.hand_out(0ns).empty());
  CHECK(ledger.complete({1}, 1));
  CHECK(pairs(ledger.hand_out(0ns)) == Pairs{{1, 4}});
}

TEST_CASE("a trainer that runs dry takes what another has queued, under the same claim") {
  StepLedger ledger(4);
  ledger.join({0});
  ledger.join({1});
  const auto first = ledger.hand_out(0ns);
  CHECK(ledger.complete({1}, 1));
  CHECK(ledger.complete({1}, 3));
  const auto stolen = ledger.hand_out(0ns);
  CHECK(pairs(stolen) == Pairs{{1, 2}});
  CHECK(stolen[0].claim == first[2].claim);
  CHECK(ledger.complete({1}, 2));
  CHECK(ledger.complete({0}, 0));
  CHECK(ledger.done());
}

TEST_CASE("the units of a lost trainer go to the others under a new claim") {
  StepLedger ledger(3);
  ledger.join({0});
  ledger.join({1});
  const auto before = ledger.hand_out(0ns);
  CHECK(pairs(before) == Pairs{{0, 0}, {1, 1}, {0, 2}});
  *before[0].claim = true;
  ledger.lose({0});
  const auto after = ledger.hand_out(0ns);
  CHECK(pairs(after) == Pairs{{1, 0}});
  CHECK_FALSE(*after[0].claim);
  CHECK(ledger.complete({1}, 1));
  CHECK(pairs(ledger.hand_out(0ns)) == Pairs{{1, 2}});
  CHECK(ledger.complete({1}, 0));
  CHECK(ledger.complete({1}, 2));
  CHECK(ledger.done());
}

TEST_CASE("what a lost trainer finished is done again when its gradients may not have arrived") {
  StepLedger ledger(2);
  ledger.join({0});
  ledger.join({1});
  CHECK(ledger.hand_out(0ns).size() == 2);
  CHECK(ledger.complete({0}, 0));
  CHECK(ledger.complete({1}, 1));
  ledger.lose({0}, true);
  CHECK_FALSE(ledger.done());
  CHECK(pairs(ledger.hand_out(0ns)) == Pairs{{1, 0}});
  CHECK(ledger.complete({1}, 0));
  CHECK(ledger.done());
}

TEST_CASE("a straggler's unit is given to somebody idle, and the first result counts") {
  StepLedger ledger(2);
  ledger.join({0});
  ledger.join({1});
  CHECK(ledger.hand_out(0ns).size() == 2);
  CHECK(ledger.complete({1}, 1));
  ledger.reopen_overdue(9ns, 10ns);
  CHECK(ledger.hand_out(9ns).empty());
  ledger.reopen_overdue(10ns, 10ns);
  CHECK(pairs(ledger.hand_out(10ns)) == Pairs{{1, 0}});
  ledger.reopen_overdue(11ns, 10ns);  // once per limit
  CHECK(ledger.hand_out(11ns).empty());
  CHECK(ledger.complete({1}, 0));
  CHECK_FALSE(ledger.complete({0}, 0));
  CHECK(ledger.repeated() == 1);
  CHECK(ledger.done());
}
