// A cluster's port as clients find it: TLS on loopback, and a token that knows its cluster.
#include <future>

#include "base/rng.h"
#include "cluster/tokens.h"
#include "cluster_fixture.h"
#include "net/identity.h"
#include "net/tls.h"

namespace fastserve {
namespace {

using namespace fastserve::testing;
using namespace std::chrono_literals;

const int64_t kNow = SystemClock().unix_seconds();

Identity coordinator_of(const CertificateAuthority& authority) {
  const KeyAndRequest made = make_key_and_request().value();
  const NodeClaim claim{authority.cluster(), "coordinator", {"coordinator"}, kNow + 3600};
  return {authority.sign(made.request, claim, kNow).value(), made.key, authority.certificate()};
}

/// Listens, and hands those who finish the handshake to a ClusterServer that takes `admin`'s token.
class SecurePort {
 public:
  SecurePort()
      : admin(make_token(Token::Kind::kAccess, fingerprint(authority.certificate()).value())),
        party_(TlsParty::create(coordinator_of(authority)).value()),
        bound_(bind_to("127.0.0.1", 0, false).value()) {
    server = ClusterServer::start(control, [this](const std::string& text) -> Result<AccessRole> {
      const Token token = parse_token(text).value();
      if (token.secret == admin.secret && !expired) return AccessRole::kAdmin;
      return Error{ErrorCode::kInvalidArgument, expired ? "has expired" : "is not known",
                   "the token", "fsctl cluster token create"};
    });
    REQUIRE(listen_at(bound_).ok());
  }
  int port() const { return bound_.port; }
  /// Takes the next `n` connections.
  std::future<std::vector<std::string>> take(int n) {
    return std::async(std::launch::async, [this, n] {
      std::vector<std::string> said;
      for (int i = 0; i < n; i++) {
        while (true) {
          Socket peer(
              ::accept4(bound_.socket.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
          if (peer.get() < 0) {
            std::this_thread::yield();
            continue;
          }
          auto secured = party_.accept(std::move(peer), "client", {}, {kClusterClientProtocol}, 5s);
          said.push_back(secured.ok() ? "" : secured.error().message());
          if (secured.ok()) server->adopt(std::move(secured->stream));
          break;
        }
      }
      return said;
    });
  }

  ScriptedControl control;
  const CertificateAuthority authority = CertificateAuthority::create(kNow).value();
  const Token admin;
  std::atomic<bool> expired{false};
  std::unique_ptr<ClusterServer> server;

 private:
  const TlsParty party_;
  const BoundPort bound_;
};

Result<std::unique_ptr<ClusterClient>> connect(int port, const std::string& token) {
  ClusterClientOptions options;
  options.timeout = 60s;
  return ClusterClient::connect("127.0.0.1", port, token, options);
}

TEST_CASE("a client with a token works over TLS as it does without") {
  SecurePort port;
  port.control.put(some_job("j1"));
  for (int i = 0; i < 2000; i++) port.control.lines.push_back(std::string(1000, 'a'));
  auto taken = port.take(1);
  auto client = connect(port.port(), port.admin.text());
  REQUIRE_MESSAGE(client.ok(), client.error().message());
  CHECK((*client)->nodes()->size() == 2);
  CHECK((*client)->drain("n1", true).ok());
  CHECK((*client)->log("j1", 0, 100'000)->size() == 2000);  // many TLS records
  const std::string long_name(1 << 20, 'm');
  CHECK(*(*client)->train(Json::object({{"model", long_name}})) == "j1");
  int updates = 0;
  CHECK((*client)
            ->watch({"j1", true, 10},
                    [&](const ClusterUpdate& update) {
                      CHECK(update.nodes.size() == 2);
                      if (++updates == 3)
                        port.control.step("j1", 100, "finished");
                      else
                        port.control.step("j1", 10 + updates);
                      return true;
                    })
            .ok());
  CHECK(updates == 4);
  CHECK(taken.get() == std::vector<std::string>{""});
}

TEST_CASE("a token of another cluster is noticed before it is shown") {
  SecurePort port;
  auto taken = port.take(1);
  Token other = port.admin;
  other.authority[0] = other.authority[0] == '0' ? '1' : '0';
  const auto client = connect(port.port(), other.text());
  REQUIRE_FALSE(client.ok());
  CHECK(client.error().code == ErrorCode::kInvalidArgument);
  CHECK(client.error().what == "is not of the cluster that the token is for");
  taken.get();
}

TEST_CASE("an unknown token and an expired one are refused with a way on") {
  SecurePort port;
  auto taken = port.take(2);
  const Token unknown = make_token(Token::Kind::kAccess, port.admin.authority);
  const auto stranger = connect(port.port(), unknown.text());
  REQUIRE_FALSE(stranger.ok());
  CHECK(stranger.error().message() == "the token: is not known (fsctl cluster token create)");
  port.expired = true;
  const auto late = connect(port.port(), port.admin.text());
  REQUIRE_FALSE(late.ok());
  CHECK(late.error().what == "has expired");
  taken.get();
}

TEST_CASE("a join token, and what is no token, go nowhere") {
  SecurePort port;
  const Token join = make_token(Token::Kind::kJoin, port.admin.authority);
  for (const std::string& text : {join.text(), std::string("secret"), std::string()})
    CHECK(connect(port.port(), text).error().code == ErrorCode::kInvalidArgument);
}

TEST_CASE("rubbish inside TLS costs its own connection and nothing else") {
  SecurePort port;
  auto taken = port.take(21);
  auto client = connect(port.port(), port.admin.text());
  REQUIRE(client.ok());
  Rng rng(5);
  for (int i = 0; i < 20; i++) {
    auto socket = connect_to("127.0.0.1", port.port(), 60s);
    REQUIRE(socket.ok());
    auto secured = connect_to_join(std::move(*socket), "port", port.admin.authority,
                                   kClusterClientProtocol, 60s);
    REQUIRE(secured.ok());
    std::string bytes(1 + rng.below(3000), '\0');
    for (char& byte : bytes) byte = static_cast<char>(rng.next());
    if (i % 2 == 0) bytes.replace(0, 4, 4, '\0');
    const std::span<const std::byte> part = std::as_bytes(std::span(bytes));
    CHECK(secured->stream->write({&part, 1}).ok());
    secured->stream->shut_down();
    CHECK((*client)->nodes().ok());
  }
  taken.get();
}

}  // namespace
}  // namespace fastserve
