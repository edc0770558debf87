// Passes that read the weights of a step while they are being brought to it.
#include "train/weights_gate.h"

#include <doctest/doctest.h>

#include <thread>

using namespace fastserve;

namespace {

using Entry = WeightsGate::Entry;

void bring(WeightsGate& gate, size_t range, StepId step) {
  gate.enter_write(range, step);
  gate.leave_write(range);
}

}  // namespace

TEST_CASE("a pass takes each range of the weights once it is at the pass's step") {
  WeightsGate gate;
  gate.divide(3);
  CHECK(gate.try_read({5}, 0) == Entry::kNotYet);
  bring(gate, 0, {5});
  CHECK(gate.try_read({5}, 0) == Entry::kIn);
  CHECK(gate.try_read({5}, 1) == Entry::kNotYet);
  gate.enter_write(1, {5});
  CHECK(gate.try_read({5}, 1) == Entry::kNotYet);
  gate.leave_write(1);
  CHECK(gate.try_read({5}, 1) == Entry::kIn);
  CHECK(gate.may_write(2, {5}));
  gate.leave_read(2);
}

TEST_CASE("weights that a pass has stay as they are until it ends") {
  WeightsGate gate;
  gate.divide(2);
  for (const size_t range : {0, 1}) bring(gate, range, {5});
  REQUIRE(gate.enter_read({5}, 0));
  CHECK(!gate.may_write(0, {6}));
  CHECK(gate.may_write(1, {6}));
  gate.leave_read(1);
  CHECK(gate.may_write(0, {6}));
}

TEST_CASE("a writer of the next step sends away who waits for the last one") {
  WeightsGate gate;
  gate.divide(2);
  bring(gate, 0, {5});
  REQUIRE(gate.enter_read({5}, 0));
  std::thread pass([&] {
    CHECK(!gate.enter_read({5}, 1));  // which never comes to step 5
    gate.leave_read(1);
  });
  bring(gate, 0, {6});  // waits for the pass
  pass.join();
  bring(gate, 1, {6});
  CHECK(gate.try_read({5}, 0) == Entry::kNever);
  CHECK(gate.try_read({6}, 0) == Entry::kIn);
}

TEST_CASE("nobody waits for weights any more when the work is over") {
  WeightsGate gate;
  gate.divide(2);
  bring(gate, 0, {5});
  REQUIRE(gate.enter_read({5}, 0));
  std::thread pass([&] {
    CHECK(!gate.enter_read({5}, 1));
    gate.leave_read(1);
  });
  gate.end();
  pass.join();
  CHECK(!gate.enter_read({5}));
  bring(gate, 0, {6});  // who writes is let in
}

TEST_CASE("a pass over all weights at once waits for who is at work on any") {
  WeightsGate gate;
  gate.divide(2);
  REQUIRE(gate.enter_read({0}));
  CHECK(!gate.may_write(1, {0}));
  gate.leave_read(gate.ranges());
  gate.enter_write(1, {0});
  std::thread pass([&] {
    CHECK(gate.enter_read({0}));
    gate.leave_read(gate.ranges());
  });
  gate.leave_write(1);
  pass.join();
}
