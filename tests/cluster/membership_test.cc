#include "cluster/membership.h"

#include <doctest/doctest.h>

#include "cluster/tokens.h"
#include "tests/cluster/small_cluster.h"

using namespace fastserve;
using namespace fastserve::testing;

namespace {

constexpr int64_t kDay = Membership::kDay;

}  // namespace

TEST_CASE("every coordinator that opens a cluster has a higher epoch than those before it") {
  SmallCluster cluster;
  uint64_t last = cluster.members->epoch();
  const auto higher = [&] {
    const bool is_higher = cluster.members->epoch() > last;
    last = cluster.members->epoch();
    return is_higher;
  };
  cluster.restart();  // within the same second
  CHECK(higher());
  cluster.clock.pass(3600);
  cluster.restart();
  CHECK(higher());
  cluster.clock.wall -= 7200;
  cluster.restart();
  CHECK(higher());
  // One that cannot write down its epoch must not have one.
  cluster.state.full = true;
  const auto refused = Membership::open(cluster.state, cluster.clock, cluster.authority);
  CHECK(refused.error().code == ErrorCode::kResourceExhausted);
}

TEST_CASE("a cluster that is restored from an old backup has a higher epoch than its nodes saw") {
  SmallCluster cluster;
  const MemoryState backup = cluster.state;
  for (int i = 0; i < 5; i++) cluster.restart();
  const uint64_t seen = cluster.members->epoch();
  cluster.clock.pass(60);
  cluster.state = backup;
  cluster.restart();
  CHECK(cluster.members->epoch() > seen);
}

TEST_CASE("a state that is empty, damaged or another cluster's is refused") {
  SmallCluster cluster;
  CHECK(Membership::create(cluster.state, cluster.authority).error().code ==
        ErrorCode::kAlreadyExists);
  const auto open = [](StateStore& state, const CertificateAuthority& authority) {
    const SetClock clock;
    return Membership::open(state, clock, authority);
  };
  MemoryState empty;
  CHECK(contains(said(open(empty, cluster.authority)), "holds no cluster"));
  const auto other = CertificateAuthority::create(cluster.clock.wall).value();
  CHECK(contains(said(open(cluster.state, other)), "the authority of cluster"));
  MemoryState damaged = cluster.state;
  damaged.records["membership/node/a"] = R"({"name": "b", "roles": [], "keys": ["x"]})";
  const auto refused = open(damaged, cluster.authority);
  CHECK(refused.error().code == ErrorCode::kCorrupt);
  CHECK(contains(said(refused), "membership/node/a"));
}

TEST_CASE("a node that joins gets a certificate for its name, its roles and its own key") {
  SmallCluster cluster;
  const auto grant = cluster.join("node-a", key_number(0), cluster.join_token());
  const NodeClaim claim = SmallCluster::claim_of(grant);
  CHECK(claim.node == "node-a");
  CHECK(claim.cluster == cluster.authority.cluster());
  CHECK(claim.roles == std::vector<std::string>{"trainer"});
  CHECK(claim.expires_unix == cluster.clock.wall + 30 * kDay);
  CHECK(claim.key == key_of_request(key_number(0).request).value());
  CHECK(grant->authority == cluster.authority.certificate());
  CHECK(cluster.members->admitted(claim).ok());
  cluster.restart();
  CHECK(cluster.members->admitted(claim).ok());
  REQUIRE(cluster.members->nodes().size() == 1);
  CHECK(cluster.members->nodes()[0].lanes == 4);
}

TEST_CASE("a token that is wrong, revoked, expired or another cluster's lets no node join") {
  SmallCluster cluster, other;
  const auto refused = [&](const std::string& token) {
    const auto grant = cluster.join("node-a", key_number(0), token);
    CHECK(grant.error().code == ErrorCode::kInvalidArgument);
    return said(grant);
  };
  const std::string good = cluster.join_token();
  std::string wrong = good;
  wrong.back() = wrong.back() == '0' ? '1' : '0';
  CHECK(contains(refused(wrong), "not known here"));
  CHECK(contains(refused(other.join_token()), "of another cluster"));
  CHECK(contains(refused(cluster.members->make_access_token(AccessRole::kAdmin, 0, "").value()),
                 "for clients"));
  CHECK(cluster.members->nodes().empty());

  cluster.clock.pass(kDay - 1);
  CHECK(cluster.join("node-a", key_number(0), good).ok());
  cluster.clock.pass(1);
  CHECK(contains(refused(good), "has expired"));

  const std::string another = cluster.join_token();
  for (const TokenRecord& token : cluster.members->tokens())
    CHECK(cluster.members->revoke_token(token.id).ok());
  CHECK(contains(refused(another), "revoked"));
  cluster.restart();
  CHECK(contains(refused(another), "revoked"));
}

TEST_CASE("a token for two nodes lets two join, and either of them again") {
  SmallCluster cluster;
  const std::string token = cluster.join_token(2);
  CHECK(cluster.join("a", key_number(0), token).ok());
  // Its answer was lost: it asks once more, which must not cost another node its place.
  CHECK(cluster.join("a", key_number(0), token).ok());
  cluster.restart();
  CHECK(cluster.join("b", key_number(1), token).ok());
  CHECK(contains(said(cluster.join("c", key_number(2), token)), "used up"));
  CHECK(cluster.members->tokens().empty());
}

TEST_CASE("a name that a live node has is not given to another, which is told the way out") {
  SmallCluster cluster;
  const std::string token = cluster.join_token();
  const NodeClaim first = SmallCluster::claim_of(cluster.join("a", key_number(0), token));
  const auto second = cluster.join("a", key_number(1), token);
  CHECK(second.error().code == ErrorCode::kAlreadyExists);
  CHECK(contains(said(second), "another --name"));
  CHECK(contains(said(second), "fsctl node remove a"));
  CHECK(cluster.members->admitted(first).ok());

  // Even just after the coordinator came back, before the node did.
  cluster.clock.pass(3600);
  cluster.restart();
  CHECK_FALSE(cluster.join("a", key_number(1), token).ok());
  cluster.clock.pass(59);
  cluster.members->heard("a");
  cluster.clock.pass(59);
  CHECK_FALSE(cluster.join("a", key_number(1), token).ok());
}

TEST_CASE("a node that lost its disk takes its name back once the old one is silent") {
  SmallCluster cluster;
  const std::string token = cluster.join_token();
  const NodeClaim old = SmallCluster::claim_of(cluster.join("a", key_number(0), token));
  cluster.clock.pass(60);
  const NodeClaim young = SmallCluster::claim_of(cluster.join("a", key_number(1), token));
  CHECK(cluster.members->admitted(young).ok());
  // Were the old one only cut off, it is told why it is of no further use.
  CHECK(contains(said(cluster.members->admitted(old)), "another node has joined by this name"));
}

TEST_CASE("a node that was removed gets in neither by its certificate nor by renewing it") {
  SmallCluster cluster;
  const std::string token = cluster.join_token();
  const NodeClaim claim = SmallCluster::claim_of(cluster.join("a", key_number(0), token));
  CHECK(cluster.members->remove("a").ok());
  CHECK(contains(said(cluster.members->admitted(claim)), "removed"));
  CHECK(contains(said(cluster.members->renew(claim, key_number(0).request)), "removed"));
  cluster.restart();
  CHECK_FALSE(cluster.members->admitted(claim).ok());
  // Its name is free at once, and the old certificate does not become the new node's.
  CHECK(cluster.join("a", key_number(1), token).ok());
  CHECK_FALSE(cluster.members->admitted(claim).ok());
  CHECK(contains(said(cluster.members->remove("b")), "there are: a"));
}

TEST_CASE("a certificate of another cluster's node of the same name is refused") {
  SmallCluster ours, theirs;
  CHECK(ours.join("a", key_number(0), ours.join_token()).ok());
  const NodeClaim foreign =
      SmallCluster::claim_of(theirs.join("a", key_number(0), theirs.join_token()));
  CHECK(contains(said(ours.members->admitted(foreign)), "of another cluster"));
}

TEST_CASE("names, roles and lanes that cannot be are refused") {
  SmallCluster cluster;
  const std::string token = cluster.join_token();
  const auto refused = [&](const std::function<void(JoinAsk&)>& change) {
    JoinAsk ask = SmallCluster::ask("a", key_number(0), token);
    change(ask);
    const auto grant = cluster.members->join(ask, "0.1.0");
    REQUIRE_FALSE(grant.ok());
    return said(grant);
  };
  for (const char* name : {"", "-rf", "../x", "a b", "a/b", "\x1b[31m", ".hidden"})
    CHECK(contains(refused([&](JoinAsk& ask) { ask.name = name; }), "is no name"));
  CHECK(contains(refused([](JoinAsk& ask) { ask.name = "coordinator"; }), "own name"));
  CHECK(contains(refused([](JoinAsk& ask) { ask.roles = {"trainer", "coordinator"}; }), "no node"));
  CHECK(contains(refused([](JoinAsk& ask) { ask.roles = {}; }), "--roles"));
  CHECK(contains(refused([](JoinAsk& ask) { ask.lanes = 0; }), "--lanes"));
  CHECK(contains(refused([](JoinAsk& ask) { ask.request = "rubbish"; }), "no request"));
  CHECK(cluster.members->nodes().empty());
}

TEST_CASE("draining is remembered until it is undone") {
  SmallCluster cluster;
  CHECK(cluster.join("a", key_number(0), cluster.join_token()).ok());
  CHECK(cluster.members->set_draining("a", true).ok());
  cluster.restart();
  CHECK(cluster.members->nodes()[0].draining);
  CHECK(cluster.members->set_draining("a", false).ok());
  CHECK_FALSE(cluster.members->nodes()[0].draining);
  CHECK(cluster.members->set_draining("b", true).error().code == ErrorCode::kNotFound);
}

TEST_CASE("an access token gives its role until it is revoked") {
  SmallCluster cluster;
  const std::string read = cluster.members->make_access_token(AccessRole::kRead, 0, "ci").value();
  const std::string admin = cluster.members->make_access_token(AccessRole::kAdmin, 0, "").value();
  CHECK(cluster.members->access(read)->role == AccessRole::kRead);
  CHECK(cluster.members->access(read)->label == "ci");
  CHECK(cluster.members->access(admin)->role == AccessRole::kAdmin);
  CHECK_FALSE(cluster.members->access(cluster.join_token()).ok());
  CHECK_FALSE(cluster.members->access("").ok());
  cluster.restart();
  CHECK(cluster.members->access(admin).ok());
  CHECK(cluster.members->revoke_token(cluster.members->access(read)->id).ok());
  CHECK(contains(said(cluster.members->access(read)), "revoked"));
  CHECK(contains(said(cluster.members->revoke_token("12345678")), "token list"));
}

TEST_CASE("no secret is in the state") {
  SmallCluster cluster;
  const std::string join = cluster.join_token();
  const std::string access = cluster.members->make_access_token(AccessRole::kRun, 0, "x").value();
  CHECK(cluster.join("a", key_number(0), join).ok());
  for (const auto& [key, value] : cluster.state.records)
    for (const std::string& token : {join, access}) {
      CHECK_FALSE(contains(value, parse_token(token)->secret));
      CHECK_FALSE(contains(key, parse_token(token)->secret));
    }
}

TEST_CASE("what a full disk refused has not happened") {
  SmallCluster cluster;
  const std::string token = cluster.join_token(1);
  CHECK(cluster.join("a", key_number(0), token).ok());
  const NodeClaim claim =
      read_claim(cluster.join("b", key_number(1), cluster.join_token())->certificate).value();
  const std::string second = cluster.join_token(1);
  cluster.state.full = true;
  CHECK_FALSE(cluster.join("c", key_number(2), second).ok());
  CHECK_FALSE(cluster.members->remove("b").ok());
  CHECK_FALSE(cluster.members->set_draining("b", true).ok());
  CHECK_FALSE(cluster.members->renew(claim, key_number(2).request).ok());
  CHECK_FALSE(cluster.members->make_join_token(0, 0, "").ok());
  cluster.state.full = false;
  CHECK(cluster.members->nodes().size() == 2);
  CHECK_FALSE(cluster.members->nodes()[1].draining);
  CHECK(cluster.members->admitted(claim).ok());
  CHECK(cluster.join("c", key_number(2), second).ok());
}
