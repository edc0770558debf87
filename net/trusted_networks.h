// Where, by the user's word, nobody listens in or interferes.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "net/socket.h"

namespace fastserve {

/// This host, and the networks that the user named.
class TrustedNetworks {
 public:
  /// Each like "10.1.0.0/16" or "fd00::/8", or one address. kInvalidArgument names what is neither.
  static Result<TrustedNetworks> parse(const std::vector<std::string>& networks);
  /// Whether the other end of a connection lies in them.
  bool hold_peer_of(const Socket& socket) const;
  /// Whether a numeric address does.
  bool hold(const std::string& address) const;

 private:
  using Address = std::array<uint8_t, 16>;  // IPv4 as ::ffff:a.b.c.d
  struct Network {
    Address address{};
    int bits = 0;
  };
  bool hold(const Address& address) const;
  std::vector<Network> networks_;
};

}  // namespace fastserve
