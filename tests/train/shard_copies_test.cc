// The rules by which a shard is held by several nodes.
#include "train/shard_copies.h"

#include <doctest/doctest.h>

#include "train/copy_maker.h"
#include "train/spec.h"

using namespace fastserve;

namespace {

constexpr StepId kFirst{7}, kNext{8};

/// Both copies of shard 0 apply the step.
void go_on(ShardCopies& copies, StepId step) {
  const std::vector<std::string> nodes = copies.holders()[0];
  for (const std::string& node : nodes) {
    CHECK(copies.gathered(node, 0, step, {1.5}).ok());
    copies.applied(node, 0, step);
  }
}

}  // namespace

TEST_CASE("copies lie on other nodes, and what one node leads is followed by all others alike") {
  const std::vector<std::string> serving{"a", "b", "c"};
  const ShardHolders holders = place_copies({"a", "b", "c", "a", "b", "c"}, serving, 1);
  CHECK(holders ==
        ShardHolders{{"a", "b"}, {"b", "c"}, {"c", "a"}, {"a", "c"}, {"b", "a"}, {"c", "b"}});
  CHECK(place_copies({"a"}, {"a"}, 1) == ShardHolders{{"a"}});
  CHECK(place_copies({"a"}, {"a", "b"}, 3) == ShardHolders{{"a", "b"}});
  CHECK(place_copies({"b"}, serving, 2) == ShardHolders{{"b", "c", "a"}});
}

TEST_CASE("a shard has gathered, and is ready, when its last copy is") {
  ShardCopies copies({{"a", "b"}}, kFirst);
  CHECK_FALSE(copies.gathered("a", 0, kFirst, {1, 2}).value());
  CHECK_FALSE(copies.gathered("a", 0, kFirst, {1, 2}).value());  // repeated
  CHECK_FALSE(copies.gathered("z", 0, kFirst, {1, 2}).value());  // holds nothing
  CHECK_FALSE(copies.gathered("b", 0, kNext, {1, 2}).value());   // not begun
  const auto whole = copies.gathered("b", 0, kFirst, {1, 2}).value();
  REQUIRE(whole);
  CHECK(whole->squares == std::vector<double>{1, 2});
  CHECK_FALSE(copies.applied("a", 0, kFirst));
  CHECK_FALSE(copies.applied("a", 0, kFirst));  // repeated
  CHECK(copies.step(0) == kFirst);
  CHECK(copies.applied("b", 0, kFirst));
  CHECK(copies.step(0) == kNext);
}

TEST_CASE("copies that sum other gradients are found out") {
  ShardCopies copies({{"a", "b"}}, kFirst);
  CHECK(copies.gathered("b", 0, kFirst, {1, 2}).ok());
  const auto other = copies.gathered("a", 0, kFirst, {1, 2.5});
  REQUIRE_FALSE(other.ok());
  CHECK(other.error().code == ErrorCode::kCorrupt);
}

TEST_CASE("a lost copy is not waited for, and the next one leads") {
  ShardCopies copies({{"a", "b"}, {"b", "a"}, {"c", "b"}}, kFirst);
  CHECK_FALSE(copies.needed("a"));
  CHECK(copies.gathered("b", 0, kFirst, {1}).ok());
  const auto loss = copies.lose("a");
  CHECK(loss.copies == 2);
  CHECK(loss.moved == std::vector<uint32_t>{0});
  REQUIRE(loss.gathered.size() == 1);
  CHECK(loss.gathered[0].shard == 0);
  CHECK(loss.ready.empty());
  CHECK(copies.leader(0) == "b");
  CHECK(copies.needed("b"));
  CHECK_FALSE(copies.needed("c"));
  CHECK(copies.fewest() == 0);
  CHECK(copies.applied("b", 0, kFirst));
}

TEST_CASE("a copy that has not applied is lost: the step ends without it") {
  ShardCopies copies({{"a", "b"}}, kFirst);
  CHECK(copies.gathered("a", 0, kFirst, {1}).ok());
  CHECK(copies.gathered("b", 0, kFirst, {1}).value());
  CHECK_FALSE(copies.applied("b", 0, kFirst));
  const auto loss = copies.lose("a");
  CHECK(loss.gathered.empty());
  REQUIRE(loss.ready.size() == 1);
  CHECK(loss.ready[0].step == kFirst);
}

TEST_CASE("a shard's state is taken once for each step, whoever sends it") {
  ShardCopies copies({{"a", "b"}}, kFirst);
  CHECK(copies.takes(0, kFirst, false));
  CHECK_FALSE(copies.takes(0, kFirst, false));
  CHECK(copies.takes(0, kFirst, true));
  CHECK_FALSE(copies.takes(0, StepId{6}, true));
  CHECK(copies.takes(0, kNext, false));
}

TEST_CASE("missing copies are made while the job holds still, by who holds least") {
  ShardCopies copies({{"a", "b"}, {"b", "a"}}, kFirst);
  CopyMaker maker(copies, 1);
  const std::vector<std::string> two{"b", "c"};
  CHECK_FALSE(maker.wants_hold({"a", "b", "c"}));  // nothing is missing
  const auto loss = copies.lose("a");
  maker.lost("a", loss);
  CHECK_FALSE(maker.wants_hold({"b"}));  // nobody could
  CHECK(maker.wants_hold(two));
  CHECK_FALSE(maker.wants_hold(two));  // asked for already
  CHECK_FALSE(maker.over());
  const auto seeds = maker.held(two);
  REQUIRE(seeds.size() == 2);
  CHECK(seeds[0].from == "b");
  CHECK(seeds[0].to == "c");
  CHECK_FALSE(maker.over());
  CHECK_FALSE(maker.made("c", 0, kNext));  // of another step
  CHECK(maker.made("c", 0, kFirst));
  CHECK_FALSE(maker.made("c", 0, kFirst));
  CHECK(maker.made("c", 1, kFirst));
  CHECK(maker.over());
  CHECK_FALSE(maker.over());
  CHECK(copies.fewest() == 1);
  CHECK(copies.holders() == ShardHolders{{"b", "c"}, {"b", "c"}});
  go_on(copies, kFirst);
  CHECK(copies.step(0) == kNext);
}

TEST_CASE("who makes a copy, or is copied from, is lost: the hold ends without it") {
  ShardCopies copies({{"b"}, {"d", "b"}}, kFirst);
  CopyMaker maker(copies, 1);
  REQUIRE(maker.wants_hold({"b", "c"}));
  REQUIRE(maker.held({"b", "c"}).size() == 1);
  maker.lost("c", copies.lose("c"));
  CHECK(maker.over());
  CHECK(maker.wants_hold({"b", "d"}));
  maker.held({"b", "d"});
  maker.lost("d", copies.lose("d"));
  CHECK(maker.over());
  CHECK(copies.holders() == ShardHolders{{"b"}, {"b"}});
}

TEST_CASE("a node leads what it was not the first to hold before") {
  HeldShards held("b");
  CHECK(held.set({{"a", "b"}, {"b", "a"}, {"a"}}) == std::vector<uint32_t>{1});
  CHECK(held.holds(0));
  CHECK_FALSE(held.leads(0));
  CHECK_FALSE(held.holds(2));
  CHECK(held.others(0) == std::vector<std::string>{"a"});
  CHECK(held.set({{"b"}, {"b"}, {"a"}}) == std::vector<uint32_t>{0});
  CHECK(held.others(0).empty());
  CHECK_FALSE(held.holds(9));
}

TEST_CASE("copies are refused where they could not stay the same bits, with what to do") {
  TrainSpec spec = find_preset("tiny")->spec;
  spec.model.vocab_size = 65;
  spec.steps = 1;
  spec.replicas = 1;
  CHECK(spec.validate().ok());
  CHECK(TrainSpec::from_json(spec.to_json(), "test")->replicas == 1);
  const auto refused = [](TrainSpec with) {
    const Status status = with.validate();
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().where == "replicas");
    return status.error().message();
  };
  TrainSpec other = spec;
  other.consistency = Consistency::parse("local:4").value();
  CHECK(refused(other).find("consistency local:4") != std::string::npos);
  other = spec;
  other.gradients = GradientFormat::parse("int8").value();
  CHECK(refused(other).find("gradients int8") != std::string::npos);
  other = spec;
  other.precision = Precision::kFloat32;
  other.weights_back = WeightsBack::parse("bf16").value();
  CHECK(refused(other).find("weights back as bf16") != std::string::npos);
  other = spec;
  other.node_checkpoints = true;
  CHECK(refused(other).find("checkpoints on nodes") != std::string::npos);
  other = spec;
  other.replicas = 9;
  refused(other);
  other.replicas = -1;
  refused(other);
}
