// Where a process listens, as people write it.
#pragma once

#include <string>

#include "base/result.h"

namespace fastserve {

struct Endpoint {
  std::string host;  ///< a name, an IPv4 address, or an IPv6 address without its brackets
  int port = 0;      ///< 1..65535
};

/// "127.0.0.1:8080", "node-3:7600", "[::1]:8080". kInvalidArgument for everything else.
Result<Endpoint> parse_endpoint(const std::string& text);

}  // namespace fastserve
