#include "net/trusted_networks.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>
#include <optional>

namespace fastserve {
namespace {

using Address = std::array<uint8_t, 16>;

constexpr int kBits = 128, kBefore4 = 96;  // bits of ::ffff:0:0/96, under which IPv4 lies

Address mapped(const in_addr& v4) {
  Address address{};
  address[10] = address[11] = 0xff;
  const auto* bytes = reinterpret_cast<const uint8_t*>(&v4.s_addr);
  std::copy_n(bytes, 4, address.begin() + 12);
  return address;
}

Address as_is(const in6_addr& v6) {
  Address address{};
  std::copy_n(v6.s6_addr, address.size(), address.begin());
  return address;
}

struct Parsed {
  Address address;
  bool v4;
};
std::optional<Parsed> parse_address(const std::string& text) {
  in_addr v4{};
  if (::inet_pton(AF_INET, text.c_str(), &v4) == 1) return Parsed{mapped(v4), true};
  in6_addr v6{};
  if (::inet_pton(AF_INET6, text.c_str(), &v6) == 1) return Parsed{as_is(v6), false};
  return std::nullopt;
}

bool same_start(const Address& a, const Address& b, int bits) {
  const auto whole = static_cast<size_t>(bits / 8);
  if (!std::equal(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(whole), b.begin()))
    return false;
  const int rest = bits % 8;
  return rest == 0 || (a[whole] ^ b[whole]) >> (8 - rest) == 0;
}

}  // namespace

Result<TrustedNetworks> TrustedNetworks::parse(const std::vector<std::string>& networks) {
  TrustedNetworks trusted;
  trusted.networks_ = {{parse_address("127.0.0.0")->address, kBefore4 + 8},
                       {parse_address("::1")->address, kBits}};
  for (const std::string& text : networks) {
    const Error bad{ErrorCode::kInvalidArgument, "is no network", text,
                    "write it as 10.1.0.0/16 or fd00::/8"};
    const size_t slash = text.find('/');
    const auto parsed = parse_address(text.substr(0, slash));
    if (!parsed) return bad;
    const int before = parsed->v4 ? kBefore4 : 0;
    int bits = kBits - before;
    if (slash != std::string::npos) {
      const char* const end = text.data() + text.size();
      const auto [at, error] = std::from_chars(text.data() + slash + 1, end, bits);
      if (error != std::errc() || at != end || bits < 0 || bits > kBits - before) return bad;
    }
    if (bits == 0)
      return Error{ErrorCode::kInvalidArgument, "is every network there is", text,
                   "name the one that connects the nodes"};
    trusted.networks_.push_back({parsed->address, before + bits});
  }
  return trusted;
}

bool TrustedNetworks::hold(const Address& address) const {
  return std::any_of(networks_.begin(), networks_.end(), [&](const Network& network) {
    return same_start(address, network.address, network.bits);
  });
}

bool TrustedNetworks::hold(const std::string& address) const {
  const auto parsed = parse_address(address == "localhost" ? "127.0.0.1" : address);
  return parsed && hold(parsed->address);
}

bool TrustedNetworks::hold_peer_of(const Socket& socket) const {
  sockaddr_storage peer{};
  socklen_t size = sizeof peer;
  if (::getpeername(socket.get(), reinterpret_cast<sockaddr*>(&peer), &size) != 0) return false;
  if (peer.ss_family == AF_INET)
    return hold(mapped(reinterpret_cast<const sockaddr_in&>(peer).sin_addr));
  return peer.ss_family == AF_INET6 &&
         hold(as_is(reinterpret_cast<const sockaddr_in6&>(peer).sin6_addr));
}

}  // namespace fastserve
