// Time: lifetimes, renewal, and clocks that are wrong.
#include <doctest/doctest.h>

#include "cluster/forward_time.h"
#include "cluster/membership.h"
#include "tests/cluster/small_cluster.h"

using namespace fastserve;
using namespace fastserve::testing;

namespace {

constexpr int64_t kDay = Membership::kDay;

}  // namespace

TEST_CASE("a node renews its certificate when ten days of thirty are left") {
  SmallCluster cluster;
  const NodeClaim claim =
      SmallCluster::claim_of(cluster.join("a", key_number(0), cluster.join_token()));
  CHECK_FALSE(renewal_due(claim, cluster.clock.wall));
  cluster.clock.pass(20 * kDay - 1);
  CHECK_FALSE(renewal_due(claim, cluster.clock.wall));
  cluster.clock.pass(1);
  CHECK(renewal_due(claim, cluster.clock.wall));
  const auto certificate = cluster.members->renew(claim, key_number(0).request);
  REQUIRE_MESSAGE(certificate.ok(), said(certificate));
  const NodeClaim next = read_claim(*certificate).value();
  CHECK(next.expires_unix == cluster.clock.wall + 30 * kDay);
  CHECK(next.roles == claim.roles);
  CHECK(cluster.members->nodes()[0].certificate_expires_unix == next.expires_unix);
}

TEST_CASE("a renewed key replaces the old one once it has been seen, and not before") {
  SmallCluster cluster;
  const NodeClaim old =
      SmallCluster::claim_of(cluster.join("a", key_number(0), cluster.join_token()));
  const NodeClaim lost = read_claim(*cluster.members->renew(old, key_number(1).request)).value();
  // The answer was lost: the node still has the old key, and asks again with one more.
  CHECK(cluster.members->admitted(old).ok());
  const NodeClaim next = read_claim(*cluster.members->renew(old, key_number(2).request)).value();
  CHECK_FALSE(cluster.members->admitted(lost).ok());
  cluster.restart();
  CHECK(cluster.members->admitted(old).ok());
  CHECK(cluster.members->admitted(next).ok());
  CHECK_FALSE(cluster.members->admitted(old).ok());
  cluster.restart();
  CHECK_FALSE(cluster.members->admitted(old).ok());
  CHECK(cluster.members->admitted(next).ok());
}

TEST_CASE("tokens live between a minute and ten years") {
  SmallCluster cluster;
  const auto join = [&](int64_t seconds) {
    return cluster.members->make_join_token(seconds, 0, "").ok();
  };
  CHECK_FALSE(join(-1));
  CHECK_FALSE(join(59));
  CHECK(join(60));
  CHECK(join(3650 * kDay));
  CHECK_FALSE(join(3650 * kDay + 1));
  CHECK_FALSE(join(INT64_MAX));
  CHECK_FALSE(cluster.members->make_join_token(0, -1, "").ok());
  CHECK_FALSE(cluster.members->make_join_token(0, 0, std::string(129, 'x')).ok());
  CHECK_FALSE(cluster.members->make_join_token(0, 0, "line\nbreak").ok());
}

TEST_CASE("tokens that expired long ago leave the list") {
  SmallCluster cluster;
  (void)cluster.join_token();
  cluster.clock.pass(20 * kDay);
  (void)cluster.join_token();
  CHECK(cluster.members->tokens().size() == 2);
  cluster.clock.pass(20 * kDay);
  (void)cluster.join_token();
  CHECK(cluster.members->tokens().size() == 2);
  cluster.restart();
  CHECK(cluster.members->tokens().size() == 2);
}

TEST_CASE("a clock that is set back makes no expired token valid, and is named") {
  SmallCluster cluster;
  const std::string token = cluster.join_token();
  cluster.clock.pass(kDay);
  CHECK_FALSE(cluster.join("a", key_number(0), token).ok());
  CHECK(cluster.members->clock_note().empty());
  cluster.clock.wall -= 7 * kDay;
  CHECK_FALSE(cluster.join("a", key_number(0), token).ok());
  CHECK(contains(cluster.members->clock_note(), "set back by 604800 s"));
  // Nothing else suffers from it: a new token lasts its day.
  const std::string next = cluster.join_token();
  CHECK(cluster.join("a", key_number(0), next).ok());
  cluster.clock.pass(kDay);
  CHECK_FALSE(cluster.join("b", key_number(1), next).ok());
  cluster.clock.wall += 7 * kDay;
  CHECK(cluster.members->clock_note().empty());
}

TEST_CASE("a coordinator that starts on a clock behind its last start says so") {
  SmallCluster cluster;
  cluster.clock.wall -= 3600;
  cluster.restart();
  CHECK(contains(cluster.members->clock_note(), "3600 s behind"));
  cluster.clock.pass(3600);
  CHECK(cluster.members->clock_note().empty());
}

TEST_CASE("forward time follows steps forward and goes on at its own pace through steps back") {
  SetClock clock;
  ForwardTime time(clock);
  const int64_t start = clock.wall;
  clock.pass(10);
  CHECK(time.unix_seconds() == start + 10);
  clock.wall += 1000;
  CHECK(time.unix_seconds() == start + 1010);
  clock.wall -= 5000;
  CHECK(time.unix_seconds() == start + 1010);
  CHECK(time.behind() == 5000);
  for (int i = 0; i < 30; i++) {  // parts of seconds are not lost however often one asks
    clock.monotonic += std::chrono::milliseconds(500);
    (void)time.unix_seconds();
  }
  CHECK(time.unix_seconds() == start + 1025);
  // A second's jitter between the two hands is no step.
  clock.wall = start + 1024;
  CHECK(time.unix_seconds() == start + 1025);
  CHECK(time.behind() == 0);
}
