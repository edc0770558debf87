// The Cap'n Proto port of a deployment.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"
#include "net/stream.h"
#include "serve/service.h"

namespace fastserve {

struct RpcServerOptions {
  std::string address = "127.0.0.1";  ///< IPv4 or IPv6, or "localhost"
  int port = 0;                       ///< 0: the system picks one
  /// There is no password: anyone who reaches the port may generate. So an address that other
  /// machines can reach has to be allowed explicitly.
  bool allow_remote = false;
  size_t max_connections = 256;             ///< further ones are closed at once
  size_t max_requests_per_connection = 64;  ///< unfinished ones; further ones: kResourceExhausted
  Nanoseconds hello_timeout = std::chrono::seconds(10);  ///< for a connection's first call
  /// Silence with no request running, or of a client that answers no events.
  Nanoseconds idle_timeout = std::chrono::minutes(10);
  /// What half-received messages may hold over all connections; further large ones wait.
  uint64_t message_memory = uint64_t{64} << 20;
  Nanoseconds message_timeout = std::chrono::seconds(30);  ///< for sending a large message
  /// How long clients may take for last events that are out when the server goes.
  Nanoseconds farewell = std::chrono::seconds(1);
  Log log;
};

/// Serves schema/fastserve.capnp from a thread of its own.
///
/// Owns:     the port, its connections, one thread.
/// Threads:  any. The service's sinks are called from the engine's thread and only hand over.
/// Promises: garbage, stalls and vanished clients cost their own connection and nothing else; a
///           client that goes away has its requests cancelled; a slow reader gets its events
///           merged, so that it holds at most its request's tokens in memory and delays nobody;
///           destruction cancels what runs, hands over the last events of what has ended, closes
///           all connections and joins the thread.
/// Refuses:  a taken port (kUnavailable), an address that is none or needs allow_remote
///           (kInvalidArgument).
class RpcServer {
 public:
  /// Takes the port before there is a service: what is wrong with it shows before a model is
  /// loaded, and clients are refused until start().
  static Result<BoundPort> bind(const RpcServerOptions& options);
  static Result<std::unique_ptr<RpcServer>> start(RpcServerOptions options,
                                                  std::shared_ptr<GenerateService> service,
                                                  BoundPort port);
  /// Both at once.
  static Result<std::unique_ptr<RpcServer>> start(RpcServerOptions options,
                                                  std::shared_ptr<GenerateService> service);
  /// Without a port: all it serves is adopted.
  static std::unique_ptr<RpcServer> without_port(RpcServerOptions options,
                                                 std::shared_ptr<GenerateService> service);
  virtual ~RpcServer() = default;

  /// Serves a client whose connection was accepted elsewhere. Never blocks.
  virtual void adopt(std::unique_ptr<Stream> stream) = 0;
  virtual int port() const = 0;
  /// "127.0.0.1:8080"
  virtual std::string endpoint() const = 0;
  virtual size_t connections() const = 0;
};

}  // namespace fastserve
