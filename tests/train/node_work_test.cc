#include "train/node_work.h"

#include <doctest/doctest.h>

using namespace fastserve;

namespace {

/// The whole step of `microbatches`, as round 7.
WorkItem step_of(uint32_t microbatches) {
  WorkItem unit;
  unit.round = 7;
  unit.subtree = unit.whole = {0, microbatches};
  return unit;
}

/// Each microbatch's loss is its number.
std::vector<double> losses_of(Subtree piece) {
  std::vector<double> losses;
  for (uint32_t i = piece.first; i < piece.end(); i++) losses.push_back(i);
  return losses;
}

}  // namespace

TEST_CASE("what a lost trainer was at goes to the others, and the unit is answered once") {
  NodeWork work(3);
  work.weights_ready({0});
  work.give(step_of(6));
  std::vector<NodeWork::Piece> given = work.hand_out({});
  REQUIRE(given.size() == 6);
  work.lose(1);
  CHECK(work.trainers() == 2);
  std::optional<NodeWork::UnitDone> unit;
  size_t again = 0;
  for (size_t i = 0; i < given.size(); i++) {
    const NodeWork::Piece piece = given[i];
    if (piece.trainer == 1) continue;
    REQUIRE_FALSE(unit);
    unit =
        work.done(piece.trainer, piece.item.round, piece.item.unit, losses_of(piece.item.subtree));
    for (const NodeWork::Piece& next : work.hand_out({})) {
      CHECK(next.trainer != 1);
      again += next.item.claim != given[next.item.unit].item.claim;
      given.push_back(next);
    }
  }
  CHECK(again == 2);
  REQUIRE(unit);
  CHECK(unit->round == 7);
  CHECK(unit->losses == losses_of({0, 6}));
}

TEST_CASE("later units are shared out among the trainers that are left") {
  NodeWork work(2);
  work.weights_ready({0});
  work.lose(0);
  work.give(step_of(4));
  const auto given = work.hand_out({});
  REQUIRE(given.size() == 1);  // one trainer is given a unit whole
  CHECK(given[0].trainer == 1);
  CHECK(given[0].item.subtree == Subtree{0, 4});
}
