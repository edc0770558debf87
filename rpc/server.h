// The Cap'n Proto port of a deployment.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"
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
  Nanoseconds idle_timeout = std::chrono::minutes(10);   ///< silence with no request running
  Log log;
};

/// Serves schema/fastserve.capnp from a thread of its own.
///
/// Owns:     the port, its connections, one thread.
/// Threads:  any. The service's sinks are called from the engine's thread and only hand over.
/// Promises: garbage, stalls and vanished clients cost their own connection and nothing else; a
///           client that goes away has its requests cancelled; a slow reader gets its events
///           merged, so that it holds at most its request's tokens in memory and delays nobody;
///           destruction cancels what runs, closes all connections and joins the thread.
/// Refuses:  a taken port (kUnavailable), an address that is none or needs allow_remote
///           (kInvalidArgument).
class RpcServer {
 public:
  static Result<std::unique_ptr<RpcServer>> start(RpcServerOptions options,
                                                  std::shared_ptr<GenerateService> service);
  virtual ~RpcServer() = default;

  virtual int port() const = 0;
  /// "127.0.0.1:8080"
  virtual std::string endpoint() const = 0;
  virtual size_t connections() const = 0;
};

}  // namespace fastserve
