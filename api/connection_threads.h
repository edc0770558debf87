// Connections that take long, each served in a thread of its own.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/cancel.h"
#include "net/tls.h"

namespace fastserve {

/// Owns:    a thread for each connection. Destruction cuts the connections, raises what the threads
///          were given, and waits for them.
/// Threads: start() from any.
class ConnectionThreads {
 public:
  using Serve = std::function<void(TlsConnection connection, const CancelFlag& closing)>;

  /// `what` they carry, for errors: "transfers of models".
  ConnectionThreads(size_t most, std::string what);
  ~ConnectionThreads();

  /// kUnavailable when as many run as may: then the connection is still the caller's.
  Status start(TlsConnection& connection, Serve serve);

 private:
  struct Running;
  void reap();

  const size_t most_;
  const std::string what_;
  CancelFlag closing_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Running>> running_;
};

}  // namespace fastserve
