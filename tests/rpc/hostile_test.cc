// Ports that are taken, clients that send rubbish, and servers that are none.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <mutex>
#include <thread>

#include "fixture.h"
#include "rubbish.h"

namespace fastserve {
namespace {

using namespace fastserve::testing;

/// A plain TCP connection to a port of this machine.
class RawPeer {
 public:
  explicit RawPeer(int port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  }
  ~RawPeer() { ::close(fd_); }
  RawPeer(const RawPeer&) = delete;
  RawPeer& operator=(const RawPeer&) = delete;

  void send(std::string_view bytes) {
    (void)!::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  /// Blocks until the server closes the connection.
  void wait_for_close() {
    char buffer[4096];
    while (::recv(fd_, buffer, sizeof buffer, 0) > 0) {
    }
  }

 private:
  int fd_;
};

/// Listens, and does with its first client what it is told.
class FakeServer {
 public:
  template <class Body>
  explicit FakeServer(Body body) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(::bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(fd_, 1) == 0);
    socklen_t size = sizeof address;
    REQUIRE(::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size) == 0);
    port = ntohs(address.sin_port);
    thread_ = std::thread([this, body] {
      const int client = ::accept(fd_, nullptr, nullptr);
      body(client);
      ::close(client);
    });
  }
  ~FakeServer() {
    thread_.join();
    ::close(fd_);
  }
  int port = 0;

 private:
  int fd_;
  std::thread thread_;
};

TEST_CASE("a taken port is refused with a way out") {
  const Served served;
  RpcServerOptions options;
  options.port = served.server->port();
  const auto second = RpcServer::start(options, served.service);
  REQUIRE_FALSE(second.ok());
  CHECK(second.error().code == ErrorCode::kUnavailable);
  CHECK(second.error().what == "port " + std::to_string(options.port) + " is taken");
  CHECK(second.error().hint.find("another port") != std::string::npos);
}

TEST_CASE("a port is taken before there is anything to serve, and opens when there is") {
  RpcServerOptions options;
  auto port = RpcServer::bind(options);
  REQUIRE(port.ok());
  options.port = port->port;
  const auto early = RpcClient::connect("127.0.0.1", options.port, std::chrono::seconds(60));
  REQUIRE_FALSE(early.ok());
  CHECK(early.error().what == "nothing listens there");
  const auto server =
      RpcServer::start(options, std::make_shared<ScriptedService>(), *std::move(port));
  REQUIRE(server.ok());
  CHECK((*server)->port() == options.port);
  CHECK(RpcClient::connect("127.0.0.1", options.port, std::chrono::seconds(60)).ok());
  const auto second = RpcServer::bind(options);
  REQUIRE_FALSE(second.ok());
  CHECK(second.error().code == ErrorCode::kUnavailable);
}

TEST_CASE("other machines are let in only when that is asked for") {
  const auto service = std::make_shared<ScriptedService>();
  for (const char* address : {"0.0.0.0", "::", "192.0.2.1"}) {
    CAPTURE(address);
    RpcServerOptions options;
    options.address = address;
    const auto refused = RpcServer::start(options, service);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code == ErrorCode::kInvalidArgument);
  }
  RpcServerOptions options;
  options.address = "0.0.0.0";
  options.allow_remote = true;
  const auto server = RpcServer::start(options, service);
  REQUIRE(server.ok());
  CHECK(RpcClient::connect("localhost", (*server)->port(), std::chrono::seconds(60)).ok());
}

TEST_CASE("an address or port that is none is refused") {
  const auto service = std::make_shared<ScriptedService>();
  RpcServerOptions options;
  options.address = "not an address";
  CHECK(RpcServer::start(options, service).error().code == ErrorCode::kInvalidArgument);
  options.address = "127.0.0.1";
  options.port = 70000;
  CHECK(RpcServer::start(options, service).error().code == ErrorCode::kInvalidArgument);
}

TEST_CASE("rubbish costs its own connection and nothing else") {
  RpcServerOptions options;
  options.hello_timeout = std::chrono::milliseconds(100);
  const Served served(options);
  const auto client = served.connect();
  for (const std::string& bytes : rubbish()) {
    RawPeer peer(served.server->port());
    peer.send(bytes);
    peer.wait_for_close();
    REQUIRE(client->health().ok());
  }
}

TEST_CASE("large messages that do not end share a little memory, and only for a while") {
  RpcServerOptions options;
  options.message_memory = 1 << 20;
  options.message_timeout = std::chrono::milliseconds(300);
  options.hello_timeout = std::chrono::hours(1);
  const Served served(options);
  const auto client = served.connect();
  const std::string half = words({0, 150'000}) + std::string(900'000, '\0');
  RawPeer first(served.server->port()), second(served.server->port());
  first.send(half);
  second.send(half);
  // Small calls pass by; a large one has its turn when the first two have had theirs.
  CHECK(client->health().ok());
  CHECK(client->tokenise("tiny", std::string(500'000, 'x')).ok());
  first.wait_for_close();
  second.wait_for_close();
}

TEST_CASE("a connection that says nothing is closed, one with a running request is not") {
  RpcServerOptions options;
  options.hello_timeout = std::chrono::milliseconds(50);
  options.idle_timeout = std::chrono::milliseconds(50);
  const Served served(options);
  RawPeer(served.server->port()).wait_for_close();

  const auto client = served.connect();
  CancelFlag cancel;
  std::atomic<bool> running{false};
  std::thread generation([&] {
    CHECK(client
              ->generate(
                  scripted("endless"), [&](GenerateEvent) { running = true; }, &cancel)
              .ok());
  });
  while (!running) std::this_thread::yield();
  RawPeer(served.server->port()).wait_for_close();  // a timeout's length later
  cancel.raise();
  generation.join();
  while (served.server->connections() > 0) std::this_thread::yield();
  CHECK(client->health().error().code == ErrorCode::kUnavailable);
}

TEST_CASE("connections above the limit are turned away until one closes") {
  RpcServerOptions options;
  options.max_connections = 2;
  const Served served(options);
  auto first = served.connect();
  const auto second = served.connect();
  const auto third =
      RpcClient::connect("127.0.0.1", served.server->port(), std::chrono::seconds(60));
  REQUIRE_FALSE(third.ok());
  CHECK(third.error().code == ErrorCode::kUnavailable);
  CHECK(third.error().hint.find("as many connections as it takes") != std::string::npos);
  CHECK(second->health().ok());
  first.reset();
  while (served.server->connections() > 1) std::this_thread::yield();
  CHECK(served.connect()->health().ok());
}

TEST_CASE("strangers who are turned away do not fill the log") {
  std::mutex mutex;
  std::vector<std::string> lines;
  RpcServerOptions options;
  options.max_connections = 1;
  options.hello_timeout = std::chrono::seconds(2);  // the log is written every quarter of it
  options.log = Log([&](LogLevel, std::string_view line) {
    const std::lock_guard lock(mutex);
    lines.emplace_back(line);
  });
  const Served served(options);
  const auto client = served.connect();
  for (int i = 0; i < 100; i++) RawPeer(served.server->port()).wait_for_close();
  const auto said = [&] {
    const std::lock_guard lock(mutex);
    return lines.size();
  };
  while (said() == 0) std::this_thread::yield();
  CHECK(said() < 100);
  const std::lock_guard lock(mutex);
  CHECK(lines[0].find("rpc: refused ") == 0);
}

TEST_CASE("requests above a connection's limit are refused until one ends") {
  RpcServerOptions options;
  options.max_requests_per_connection = 1;
  const Served served(options);
  const auto client = served.connect();
  CancelFlag cancel;
  std::thread running([&] {
    CHECK(client
              ->generate(
                  scripted("endless"), [](GenerateEvent) {}, &cancel)
              .ok());
  });
  served.service->wait_for_submitted(1);
  const Status refused = client->generate(scripted("count"), [](GenerateEvent) {});
  CHECK(refused.error().code == ErrorCode::kResourceExhausted);
  CHECK(served.connect()->generate(scripted("count"), [](GenerateEvent) {}).ok());
  cancel.raise();
  running.join();
}

TEST_CASE("a client says what it found instead of a server") {
  int unused = 0;
  {
    const FakeServer gone([](int) {});
    unused = gone.port;
    (void)RpcClient::connect("127.0.0.1", gone.port, std::chrono::seconds(60));
  }
  const auto nobody = RpcClient::connect("127.0.0.1", unused, std::chrono::seconds(60));
  REQUIRE_FALSE(nobody.ok());
  CHECK(nobody.error().code == ErrorCode::kUnavailable);
  CHECK(nobody.error().what == "nothing listens there");
  CHECK(nobody.error().hint.find("fsctl deploy") != std::string::npos);

  const FakeServer web([](int client) {
    char buffer[512];
    (void)!::recv(client, buffer, sizeof buffer, 0);
    const std::string_view reply = "HTTP/1.1 400 Bad Request\r\n\r\n";
    (void)!::send(client, reply.data(), reply.size(), MSG_NOSIGNAL);
  });
  const auto other = RpcClient::connect("127.0.0.1", web.port, std::chrono::seconds(60));
  REQUIRE_FALSE(other.ok());
  CHECK(other.error().where == "127.0.0.1:" + std::to_string(web.port));

  const FakeServer silent([](int client) {
    char buffer[512];
    while (::recv(client, buffer, sizeof buffer, 0) > 0) {
    }
  });
  const auto waited = RpcClient::connect("127.0.0.1", silent.port, std::chrono::milliseconds(50));
  REQUIRE_FALSE(waited.ok());
  CHECK(waited.error().code == ErrorCode::kDeadlineExceeded);
  CHECK(RpcClient::connect("127.0.0.1", 0, std::chrono::seconds(1)).error().code ==
        ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace fastserve
