// Listening and connecting with plain sockets: what fails is an Error before any loop runs.
#pragma once

#include <string>

#include "base/clock.h"
#include "base/fd.h"
#include "base/result.h"

namespace fastserve {

using Socket = Fd;

/// A port taken, at which nobody is let in yet.
struct BoundPort {
  Socket socket;
  int port = 0;
  std::string endpoint;  ///< "127.0.0.1:8080", "[::1]:8080"
};

/// Takes a port of a numeric address or "localhost". An address that other machines can reach needs
/// `allow_remote`.
Result<BoundPort> bind_to(const std::string& address, int port, bool allow_remote);
/// Lets clients in.
Status listen_at(const BoundPort& bound);

/// "host:port" as people write it.
std::string endpoint_text(const std::string& host, int port);

/// Connects to any of the host's addresses within `timeout`.
Result<Socket> connect_to(const std::string& host, int port, Nanoseconds timeout);

}  // namespace fastserve
