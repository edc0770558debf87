// A coordinator's service over a script, and clients of it over socket pairs.
#pragma once

#include <doctest/doctest.h>
#include <sys/socket.h>

#include <atomic>
#include <memory>
#include <thread>
#include <utility>

#include "rpc/cluster_client.h"
#include "rpc/cluster_server.h"
#include "scripted_control.h"

namespace fastserve::testing {

inline std::pair<Socket, Socket> socket_pair() {
  int fds[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0);
  return {Socket(fds[0]), Socket(fds[1])};
}

/// Tokens are "read", "run" and "admin"; `taken_back` is worth nothing any more.
struct ServedCluster {
  explicit ServedCluster(ClusterServerOptions options = {}) {
    server = ClusterServer::start(
        control,
        [this](const std::string& token) -> Result<AccessRole> {
          checks++;
          if (token == "read") return AccessRole::kRead;
          if (token == "run") return AccessRole::kRun;
          if (token == "admin" && !taken_back) return AccessRole::kAdmin;
          return Error{ErrorCode::kInvalidArgument,
                       token == "admin" ? "has expired" : "is none of this cluster's",
                       "access token", "fsctl cluster token create"};
        },
        std::move(options));
  }
  /// The client's end of a connection.
  Socket raw() const {
    auto [ours, theirs] = socket_pair();
    server->adopt(plain_stream(std::move(theirs), "client"));
    return std::move(ours);
  }
  Result<std::unique_ptr<ClusterClient>> try_connect(const std::string& token,
                                                     ClusterClientOptions options = {}) const {
    if (options.timeout == ClusterClientOptions{}.timeout)
      options.timeout = std::chrono::seconds(60);
    return ClusterClient::over(plain_stream(raw(), "coordinator"), token, options);
  }
  std::unique_ptr<ClusterClient> connect(const std::string& token = "admin") const {
    auto client = try_connect(token);
    if (!client.ok()) FAIL(client.error().message());
    return std::move(client).value();
  }
  void wait_for_connections(size_t n) const {
    while (server->connections() != n) std::this_thread::yield();
  }

  ScriptedControl control;
  std::atomic<int> checks{0};
  std::atomic<bool> taken_back{false};
  std::unique_ptr<ClusterServer> server;
};

}  // namespace fastserve::testing
