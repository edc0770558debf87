#include "net/join.h"

#include <doctest/doctest.h>

#include <future>

#include "cluster/membership.h"
#include "cluster/tokens.h"
#include "net/document_stream.h"
#include "tests/cluster/memory_state.h"
#include "tests/net/lane_fixture.h"

using namespace fastserve;
using namespace fastserve::testing;
using namespace std::chrono_literals;

namespace {

const int64_t kNow = SystemClock().unix_seconds();

template <class T>
std::string said(const Result<T>& result) {
  return result.ok() ? "" : result.error().message();
}
bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

const KeyAndRequest& key() {
  static const KeyAndRequest made = make_key_and_request().value();
  return made;
}

/// A coordinator that answers one connection at a time.
struct Coordinator {
  Coordinator() {
    REQUIRE(Membership::create(state, authority).ok());
    members = Membership::open(state, clock, authority).value();
  }
  TlsParty party(const std::string& node, const std::string& role) const {
    const KeyAndRequest made = make_key_and_request().value();
    const NodeClaim claim{authority.cluster(), node, {role}, kNow + 3600};
    return TlsParty::create({authority.sign(made.request, claim, kNow).value(), made.key,
                             authority.certificate()})
        .value();
  }
  std::string token() { return members->make_join_token(0, 0, "").value(); }
  std::string print() const { return fingerprint(authority.certificate()).value(); }

  MemoryState state;
  SystemClock clock;
  CertificateAuthority authority = CertificateAuthority::create(kNow).value();
  std::unique_ptr<Membership> members;
};

JoinAsk ask_with(const std::string& token) {
  JoinAsk ask;
  ask.version = "0.1.0";
  ask.token = token;
  ask.name = "node-a";
  ask.roles = {"trainer"};
  ask.lanes = 2;
  return ask;
}

using Decide = std::function<Result<JoinGrant>(const JoinAsk&)>;

/// Runs `client` against one serve_join of `server`; returns what serve_join came to.
template <class Client>
Status serve_one(const TlsParty& server, const Decide& decide, const Client& client,
                 Nanoseconds timeout = 5s) {
  SocketPair pair;
  auto served = std::async(std::launch::async, [&, socket = std::move(pair.b)]() mutable -> Status {
    FS_ASSIGN(TlsConnection made,
              server.accept(std::move(socket), "client:1", {}, {kJoinProtocol}, 5s));
    return serve_join(std::move(made), decide, timeout);
  });
  client(std::move(pair.a));
  return served.get();
}

Result<TlsConnection> greet(Socket socket, const std::string& print) {
  return connect_to_join(std::move(socket), "server:1", print, kJoinProtocol, 5s);
}

struct Joined {
  Result<Identity> node;
  Status server;
};
Joined join(Coordinator& cluster, const TlsParty& server, const JoinAsk& ask,
            const Decide& decide) {
  Joined joined{Error{}, {}};
  joined.server = serve_one(server, decide, [&](Socket socket) {
    auto greeted = greet(std::move(socket), cluster.print());
    REQUIRE_MESSAGE(greeted.ok(), said(greeted));
    joined.node = join_over(std::move(*greeted), cluster.print(), ask, key(), 5s);
  });
  return joined;
}

}  // namespace

TEST_CASE("a node trades its token for a certificate by which the cluster's nodes let it in") {
  Coordinator cluster;
  const TlsParty server = cluster.party("coordinator", "coordinator");
  const Joined joined = join(cluster, server, ask_with(cluster.token()), [&](const JoinAsk& ask) {
    return cluster.members->join(ask, "0.1.0");
  });
  REQUIRE_MESSAGE(joined.node.ok(), said(joined.node));
  CHECK_MESSAGE(joined.server.ok(), said(joined.server));
  CHECK(joined.node->key == key().key);
  const TlsParty node = TlsParty::create(*joined.node).value();
  SocketPair pair;
  auto accepted = std::async(std::launch::async, [&] {
    return server.accept(std::move(pair.b), "client:1", {"bulk/1"}, {}, 5s);
  });
  CHECK(node.connect(std::move(pair.a), "server:1", "coordinator", {"bulk/1"}, 5s).ok());
  const auto claim = accepted.get();
  REQUIRE_MESSAGE(claim.ok(), said(claim));
  CHECK(cluster.members->admitted(*claim->claim).ok());
}

TEST_CASE("what the coordinator refuses is told in its words") {
  Coordinator cluster;
  const TlsParty server = cluster.party("coordinator", "coordinator");
  const Joined joined = join(cluster, server, ask_with(cluster.token()), [](const JoinAsk&) {
    return Result<JoinGrant>(Error{ErrorCode::kAlreadyExists, "taken", "node-a", "rename"});
  });
  CHECK(joined.node.error().code == ErrorCode::kAlreadyExists);
  CHECK(said(joined.node) == said(joined.server));
  CHECK(joined.node.error().where == "node-a");
  CHECK(joined.node.error().hint == "rename");
}

TEST_CASE("a token is not sent to a node, nor to another cluster's coordinator") {
  Coordinator cluster, other;
  bool asked = false;
  const Decide decide = [&](const JoinAsk&) {
    asked = true;
    return Result<JoinGrant>(Error{});
  };
  const Joined joined =
      join(cluster, cluster.party("node-b", "trainer"), ask_with(cluster.token()), decide);
  CHECK(contains(said(joined.node), "node-b is a node of the cluster, and not its coordinator"));
  const TlsParty stranger = other.party("coordinator", "coordinator");
  (void)serve_one(stranger, decide, [&](Socket socket) {
    CHECK(contains(said(greet(std::move(socket), cluster.print())), "not of the cluster"));
  });
  CHECK_FALSE(asked);
}

TEST_CASE("a node of versions that we do not speak is told which side to update") {
  Coordinator cluster;
  const TlsParty server = cluster.party("coordinator", "coordinator");
  const Decide never = [](const JoinAsk&) -> Result<JoinGrant> { FS_CHECK(false); };
  JoinAsk ask = ask_with(cluster.token());
  ask.oldest = kJoinProtocolNewest + 1, ask.newest = kJoinProtocolNewest + 3;
  const Joined newer = join(cluster, server, ask, never);
  CHECK(newer.node.error().code == ErrorCode::kUnsupported);
  CHECK(contains(said(newer.node), "update the coordinator"));
  ask.oldest = ask.newest = kJoinProtocolOldest - 1;
  CHECK(contains(said(join(cluster, server, ask, never).node), "update the node"));
  // One that speaks ours and newer ones is let in, whatever else its document says.
  const std::string document = R"({"oldest": 1, "newest": 9, "name": "a", "gpus": {"count": 8}})";
  CHECK(parse_join_ask(document)->name == "a");
}

TEST_CASE("an answer that does not fit the question is refused") {
  Coordinator cluster, other;
  const TlsParty server = cluster.party("coordinator", "coordinator");
  const auto answer = [&](const std::function<void(JoinAsk&)>& ask_change,
                          const std::function<void(JoinGrant&)>& grant_change) {
    return said(join(cluster, server, ask_with(cluster.token()), [&](JoinAsk ask) {
                  ask_change(ask);
                  auto grant = cluster.members->join(ask, "0.1.0");
                  REQUIRE_MESSAGE(grant.ok(), said(grant));
                  grant_change(*grant);
                  return grant;
                }).node);
  };
  const auto same_ask = [](JoinAsk&) {};
  const auto same_grant = [](JoinGrant&) {};
  CHECK(contains(
      answer(same_ask, [&](JoinGrant& grant) { grant.authority = other.authority.certificate(); }),
      "another authority"));
  CHECK(contains(answer(same_ask, [](JoinGrant& grant) { grant.certificate = "rubbish"; }),
                 "no certificate"));
  CHECK(contains(answer([](JoinAsk& ask) { ask.name = "node-z"; }, same_grant), "another node"));
  CHECK(contains(answer(
                     [](JoinAsk& ask) {
                       ask.name = "node-y";
                       ask.request = make_key_and_request().value().request;
                     },
                     same_grant),
                 "another key"));
}

TEST_CASE("a peer that sends rubbish, too much, too little or nothing is told or dropped in time") {
  Coordinator cluster;
  const TlsParty server = cluster.party("coordinator", "coordinator");
  const Decide never = [](const JoinAsk&) -> Result<JoinGrant> { FS_CHECK(false); };
  const auto hear = [&](const std::function<void(Stream&)>& speak, Nanoseconds timeout = 5s) {
    return serve_one(
        server, never,
        [&](Socket socket) {
          auto greeted = greet(std::move(socket), cluster.print());
          REQUIRE_MESSAGE(greeted.ok(), said(greeted));
          speak(*greeted->stream);
        },
        timeout);
  };
  const auto raw = [](Stream& stream, std::string bytes) {
    const std::span<const std::byte> all = std::as_bytes(std::span(bytes));
    REQUIRE(stream.write({&all, 1}).ok());
  };
  std::string told;
  Status served = hear([&](Stream& stream) {
    REQUIRE(send_document(stream, "{]", steady_now() + 5s).ok());
    told = said(parse_join_grant(receive_document(stream, steady_now() + 5s).value()));
  });
  CHECK(served.error().code == ErrorCode::kCorrupt);
  CHECK(contains(told, "not valid JSON"));
  served = hear([&](Stream& stream) { raw(stream, std::string("\x01\x00\x01\x00", 4)); });
  CHECK(contains(said(served), "65537 bytes"));
  served = hear([&](Stream& stream) {
    raw(stream, std::string("\x08\x00\x00\x00half", 8));
    stream.shut_down();
  });
  CHECK(contains(said(served), "in the middle"));
  served = hear([&](Stream& stream) { raw(stream, std::string("\x08\x00\x00\x00half", 8)); });
  CHECK(served.error().code == ErrorCode::kUnavailable);
  served = hear(
      [&](Stream& stream) {
        raw(stream, std::string("\x08\x00", 2));
        // Says no more until the server has had enough, and closes.
        std::byte byte{};
        while (true) {
          auto moved = stream.read({&byte, 1});
          if (!moved.ok() || moved->closed) break;
          std::this_thread::yield();
        }
      },
      50ms);
  CHECK(served.error().code == ErrorCode::kDeadlineExceeded);
}

TEST_CASE("documents of every length up to the limit arrive as they were sent") {
  SocketPair pair;
  const auto a = plain_stream(std::move(pair.a), "a"), b = plain_stream(std::move(pair.b), "b");
  for (const size_t length : {size_t{0}, size_t{1}, size_t{1000}, size_t{kLongestDocument}}) {
    const std::string text(length, 'x');
    auto sent =
        std::async(std::launch::async, [&] { return send_document(*a, text, steady_now() + 5s); });
    CHECK(receive_document(*b, steady_now() + 5s).value() == text);
    CHECK(sent.get().ok());
  }
}
