#include "net/tls.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <future>

#include "net/identity.h"
#include "net/trusted_networks.h"
#include "tests/net/lane_fixture.h"

using namespace fastserve;
using namespace std::chrono_literals;

namespace {

const int64_t kNow = SystemClock().unix_seconds();
constexpr int64_t kDay = 24 * 3600;

struct Cluster {
  CertificateAuthority authority = CertificateAuthority::create(kNow).value();

  Identity identity(const std::string& node, std::vector<std::string> roles = {"trainer"},
                    int64_t expires = kNow + kDay) const {
    const KeyAndRequest made = make_key_and_request().value();
    const NodeClaim claim{authority.cluster(), node, std::move(roles), expires};
    return {authority.sign(made.request, claim, std::min(kNow, expires - kDay)).value(), made.key,
            authority.certificate()};
  }
  TlsParty party(const std::string& node) const { return TlsParty::create(identity(node)).value(); }
};

struct Meeting {
  Result<TlsConnection> client, server;
};

/// Both sides at once, over a socket pair.
template <class Connect>
Meeting meet(const TlsParty& server, const Connect& connect,
             std::vector<std::string> protocols = {"bulk/1"}, std::vector<std::string> open = {}) {
  SocketPair pair;
  auto answered = std::async(std::launch::async, [&, socket = std::move(pair.b)]() mutable {
    return server.accept(std::move(socket), "client:1", protocols, open, 5s);
  });
  auto asked = connect(std::move(pair.a));
  return {std::move(asked), answered.get()};
}

Meeting meet(const TlsParty& client, const TlsParty& server, const std::string& node = "",
             const std::vector<std::string>& protocols = {"bulk/1"},
             const std::vector<std::string>& offered = {"bulk/1"}) {
  const auto connect = [&](Socket socket) {
    return client.connect(std::move(socket), "server:1", node, protocols, 5s);
  };
  return meet(server, connect, offered);
}

std::string said(const Result<TlsConnection>& made) {
  return made.ok() ? "" : made.error().message();
}
bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

Path scratch(const std::string& name) {
  const Path folder = std::filesystem::temp_directory_path() /
                      ("fastserve-" + name + "-" + std::to_string(::getpid()));
  std::filesystem::remove_all(folder);
  return folder;
}

}  // namespace

TEST_CASE("two nodes of a cluster learn each other's name and roles") {
  const Cluster cluster;
  const TlsParty a = TlsParty::create(cluster.identity("node-a", {"trainer", "server"})).value();
  const TlsParty b = cluster.party("node-b");
  const Meeting met = meet(a, b, "node-b");
  REQUIRE_MESSAGE(met.client.ok(), said(met.client));
  REQUIRE_MESSAGE(met.server.ok(), said(met.server));
  CHECK(met.client->claim->node == "node-b");
  CHECK(met.server->claim->node == "node-a");
  CHECK(met.server->claim->cluster == cluster.authority.cluster());
  CHECK(met.server->claim->roles == std::vector<std::string>{"trainer", "server"});
  CHECK(met.server->claim->expires_unix == kNow + kDay);
  CHECK(met.server->protocol == "bulk/1");
  CHECK(met.client->stream->peer() == "node-b (server:1)");
}

TEST_CASE("a node of another cluster is refused, and told so") {
  const Cluster ours, theirs;
  const Meeting met = meet(theirs.party("spy"), ours.party("node-b"));
  CHECK(met.server.error().code == ErrorCode::kInvalidArgument);
  CHECK(met.client.error().code == ErrorCode::kInvalidArgument);
  CHECK(contains(said(met.client), "none of this cluster's"));
}

TEST_CASE("an expired certificate is refused, and both sides say so") {
  const Cluster cluster;
  const TlsParty late = TlsParty::create(cluster.identity("late", {}, kNow - 10)).value();
  const Meeting met = meet(late, cluster.party("node-b"));
  CHECK(contains(said(met.server), "the peer's certificate has expired"));
  CHECK(contains(said(met.client), "expired: let it join again"));
}

TEST_CASE("a node with no certificate gets nothing but what is open") {
  const Cluster cluster;
  const TlsParty server = cluster.party("node-b");
  const std::string print = fingerprint(cluster.authority.certificate()).value();
  const auto join = [&](const std::string& protocol) {
    return [&, protocol](Socket socket) {
      return connect_to_join(std::move(socket), "server:1", print, protocol, 5s);
    };
  };
  CHECK(contains(said(meet(server, join("bulk/1")).client), "has not joined"));
  const Meeting refused = meet(server, join("bulk/1"), {"bulk/1"}, {"join/1"});
  CHECK_FALSE(refused.client.ok());
  CHECK(contains(said(refused.server), "shows no certificate"));
  const Meeting let_in = meet(server, join("join/1"), {"bulk/1"}, {"join/1"});
  REQUIRE_MESSAGE(let_in.client.ok(), said(let_in.client));
  CHECK(let_in.client->claim->node == "node-b");
  CHECK_FALSE(let_in.server->claim);
}

TEST_CASE("who joins refuses an authority that is not the token's") {
  const Cluster real, fake;
  const std::string print = fingerprint(real.authority.certificate()).value();
  const Meeting met =
      meet(fake.party("node-b"),
           [&](Socket socket) {
             return connect_to_join(std::move(socket), "server:1", print, "join/1", 5s);
           },
           {}, {"join/1"});
  CHECK(contains(said(met.client), "not of the cluster that the token is for"));
}

TEST_CASE("an address that leads to another node is noticed") {
  const Cluster cluster;
  CHECK(
      contains(said(meet(cluster.party("a"), cluster.party("b"), "c").client), "is b, and not c"));
}

TEST_CASE("versions that share no protocol say which way out there is") {
  const Cluster cluster;
  CHECK(contains(said(meet(cluster.party("a"), cluster.party("b"), "", {"bulk/2"}).client),
                 "update the older"));
}

TEST_CASE("a peer that does not finish the handshake costs its time and no more") {
  const Cluster cluster;
  SocketPair pair;
  const auto made = cluster.party("a").accept(std::move(pair.a), "silent:1", {"bulk/1"}, {}, 20ms);
  CHECK(made.error().code == ErrorCode::kDeadlineExceeded);
  SocketPair garbage;
  CHECK(::send(garbage.b.get(), "GET / HTTP/1.1\r\n\r\n", 18, 0) == 18);
  CHECK(cluster.party("a")
            .accept(std::move(garbage.a), "browser:1", {"bulk/1"}, {}, 5s)
            .error()
            .code == ErrorCode::kUnavailable);
}

TEST_CASE("a write to a peer that has ended the stream in good order fails, and does not wait") {
  const Cluster cluster;
  Meeting met = meet(cluster.party("a"), cluster.party("b"));
  met.client.value().stream->shut_down();
  met.client.value().stream = nullptr;
  Stream& stream = *met.server.value().stream;
  std::byte byte{};
  Result<Moved> moved = stream.read({&byte, 1});
  for (int i = 0; i < 100 && moved.ok() && !moved->closed; i++) moved = stream.read({&byte, 1});
  REQUIRE(moved.ok());
  CHECK(moved->closed);
  const std::span<const std::byte> word(&byte, 1);
  Result<Moved> written = stream.write({&word, 1});
  REQUIRE_FALSE(written.ok());
  CHECK(written.error().code == ErrorCode::kUnavailable);
}

TEST_CASE("a lane under TLS carries what a plain one does") {
  const Cluster cluster;
  Meeting met = meet(cluster.party("a"), cluster.party("b"));
  REQUIRE(met.client.ok());
  REQUIRE(met.server.ok());
  Keeper at_a, at_b;
  std::vector<std::unique_ptr<Stream>> left, right;
  left.push_back(std::move(met.client->stream));
  right.push_back(std::move(met.server->stream));
  auto a = BulkLane::start(std::move(left), at_a, {}).value();
  auto b = BulkLane::start(std::move(right), at_b, {}).value();
  const SharedBytes bytes = shared_noise(5'000'001, 1);
  a->send({1, 0, 0, 0}, {whole(bytes)}, 0);
  b->send({2, 0, 0, 0}, {whole(bytes)}, 0);
  CHECK(at_b.wait_for({1, 0, 0, 0}) == *bytes);
  CHECK(at_a.wait_for({2, 0, 0, 0}) == *bytes);
  a.reset();
  CHECK(at_b.wait_for_end().code == ErrorCode::kUnavailable);
}

TEST_CASE("two nodes that both allow it leave TLS once they have proven who they are") {
  const Cluster cluster;
  const std::vector<std::string> both = {"bulk/1+plain", "bulk/1"}, one = {"bulk/1"};
  for (const auto& [asked, offered] : {std::pair(both, both), {both, one}, {one, both}}) {
    Meeting met = meet(cluster.party("a"), cluster.party("b"), "b", asked, offered);
    REQUIRE_MESSAGE(met.client.ok(), said(met.client));
    REQUIRE_MESSAGE(met.server.ok(), said(met.server));
    const bool plain = asked == both && offered == both;
    CHECK(met.client->protocol == (plain ? "bulk/1+plain" : "bulk/1"));
    CHECK(met.server->protocol == met.client->protocol);
    CHECK(met.server->claim->node == "a");
    CHECK(met.client->stream->detects_change() != plain);
    const SharedBytes bytes = shared_noise(1000, 1);
    const std::span<const std::byte> part(*bytes);
    REQUIRE(met.client->stream->write({&part, 1})->bytes == bytes->size());
    std::vector<std::byte> wire(1000);
    CHECK(::recv(met.server->stream->fd(), wire.data(), wire.size(), MSG_PEEK) == 1000);
    CHECK((wire == *bytes) == plain);
    CHECK(met.server->stream->read(wire)->bytes == 1000);
    CHECK(wire == *bytes);
  }
  const Cluster foreign;
  CHECK_FALSE(meet(foreign.party("spy"), cluster.party("b"), "", both, both).client.ok());
}

TEST_CASE("a trusted network holds its own addresses and this host's, and no others") {
  const auto trusted =
      TrustedNetworks::parse({"10.1.0.0/16", "fd00:1::/33", "192.168.7.9"}).value();
  for (const char* const inside : {"127.0.0.1", "::1", "localhost", "10.1.255.1", "fd00:1:7fff::1",
                                   "192.168.7.9", "::ffff:10.1.2.3"})
    CHECK_MESSAGE(trusted.hold(inside), inside);
  for (const char* const outside :
       {"10.2.0.1", "11.1.0.1", "fd00:1:8000::1", "192.168.7.8", "::2", "somewhere", ""})
    CHECK_MESSAGE(!trusted.hold(outside), outside);
  for (const char* const bad : {"10.1.0.0/33", "10.1.0.0/", "10.1.0.0/x", "10.1.0.0/-1", "10.1/16",
                                "fd00::/129", "0.0.0.0/0", "::/0", "", "10.1.0.0/8 "})
    CHECK_MESSAGE(TrustedNetworks::parse({bad}).error().code == ErrorCode::kInvalidArgument, bad);
}

TEST_CASE("names that could forge another claim are refused") {
  const Cluster cluster;
  const KeyAndRequest made = make_key_and_request().value();
  for (const std::string& name : std::vector<std::string>{"", "a/b", "a,URI:fastserve:x/y", "a b",
                                                          "a\n", std::string(65, 'a')})
    CHECK(cluster.authority.sign(made.request, {cluster.authority.cluster(), name, {}, kNow}, kNow)
              .error()
              .code == ErrorCode::kInvalidArgument);
  CHECK(cluster.authority.sign("no request", {cluster.authority.cluster(), "a", {}, kNow}, kNow)
            .error()
            .code == ErrorCode::kInvalidArgument);
}

TEST_CASE("an authority is kept in a folder that only its owner reads, and never overwritten") {
  const Path folder = scratch("authority");
  const Cluster cluster;
  CHECK(CertificateAuthority::load(folder).error().code == ErrorCode::kNotFound);
  REQUIRE(cluster.authority.save(folder).ok());
  CHECK(CertificateAuthority::load(folder)->cluster() == cluster.authority.cluster());
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    struct stat status {};
    REQUIRE(::stat(file.path().c_str(), &status) == 0);
    CHECK((status.st_mode & 077) == 0);
  }
  CHECK(Cluster().authority.save(folder).error().code == ErrorCode::kAlreadyExists);
  const Path other = scratch("authority-2");
  REQUIRE(Cluster().authority.save(other).ok());
  std::filesystem::copy_file(other / "authority.pem", folder / "authority.pem",
                             std::filesystem::copy_options::overwrite_existing);
  CHECK(CertificateAuthority::load(folder).error().code == ErrorCode::kCorrupt);
  std::filesystem::remove_all(folder);
  std::filesystem::remove_all(other);
}
