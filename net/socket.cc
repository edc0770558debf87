#include "net/socket.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

namespace fastserve {
namespace {

struct FreeAddresses {
  void operator()(addrinfo* list) const { ::freeaddrinfo(list); }
};
using Addresses = std::unique_ptr<addrinfo, FreeAddresses>;

Result<Addresses> look_up(const std::string& host, int port, int flags) {
  addrinfo wanted{};
  wanted.ai_socktype = SOCK_STREAM;
  wanted.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int failed = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &wanted, &list);
  if (failed == 0 && list != nullptr) return Addresses(list);
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("is no address: {}", ::gai_strerror(failed)), host,
               "give an IP address or a host's name"};
}

bool is_loopback(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(address);
    return (ntohl(v4->sin_addr.s_addr) >> 24) == 127;
  }
  const auto* v6 = reinterpret_cast<const sockaddr_in6*>(address);
  return address->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr) != 0;
}

Error socket_error(const std::string& what, const std::string& endpoint) {
  return {ErrorCode::kIo, fmt::format("{}: {}", what, std::strerror(errno)), endpoint, ""};
}

/// Of a bind or listen that failed.
Error port_error(int port, const std::string& endpoint) {
  if (errno == EADDRINUSE)
    return Error{ErrorCode::kUnavailable, fmt::format("port {} is taken", port), endpoint,
                 "choose another port, 0 for any free one, or stop what listens there"};
  Error error = socket_error("cannot listen", endpoint);
  if (errno == EACCES) error.hint = "ports below 1024 need privileges: choose a higher one";
  if (errno == EADDRNOTAVAIL) error.hint = "this machine has no such address";
  return error;
}

}  // namespace

std::string endpoint_text(const std::string& host, int port) {
  return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port)
                                             : fmt::format("[{}]:{}", host, port);
}

Result<BoundPort> bind_to(const std::string& address, int port, bool allow_remote) {
  if (port < 0 || port > 65535)
    return Error{ErrorCode::kInvalidArgument, fmt::format("{} is no port", port), address,
                 "use 1 to 65535, or 0 for any free one"};
  const std::string numeric = address == "localhost" ? "127.0.0.1" : address;
  FS_ASSIGN(const Addresses found, look_up(numeric, port, AI_PASSIVE | AI_NUMERICHOST));
  if (!allow_remote && !is_loopback(found->ai_addr))
    return Error{ErrorCode::kInvalidArgument,
                 "can be reached by other machines, and the port asks for no password", address,
                 "listen on 127.0.0.1, or allow remote clients explicitly (--allow-remote)"};
  const std::string endpoint = endpoint_text(numeric, port);
  Socket socket(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (socket.get() < 0) return socket_error("cannot make a socket", endpoint);
  const int one = 1;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (::bind(socket.get(), found->ai_addr, found->ai_addrlen) != 0)
    return port_error(port, endpoint);
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&bound), &size) != 0)
    return socket_error("cannot ask for the port", endpoint);
  const int chosen =
      ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6*>(&bound)->sin6_port
                                        : reinterpret_cast<const sockaddr_in*>(&bound)->sin_port);
  return BoundPort{std::move(socket), chosen, endpoint_text(numeric, chosen)};
}

Status listen_at(const BoundPort& bound) {
  // Two may bind a port before either listens: then this is where the second finds out.
  if (::listen(bound.socket.get(), 1024) != 0) return port_error(bound.port, bound.endpoint);
  return {};
}

Result<Socket> connect_to(const std::string& host, int port, Nanoseconds timeout) {
  const std::string endpoint = endpoint_text(host, port);
  if (port < 1 || port > 65535)
    return Error{ErrorCode::kInvalidArgument, fmt::format("{} is no port", port), host,
                 "use 1 to 65535"};
  FS_ASSIGN(const Addresses found, look_up(host, port, 0));
  Error last{ErrorCode::kUnavailable, "", endpoint, ""};
  for (const addrinfo* at = found.get(); at != nullptr; at = at->ai_next) {
    Socket socket(::socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (socket.get() < 0) continue;
    int failure = ::connect(socket.get(), at->ai_addr, at->ai_addrlen) == 0 ? 0 : errno;
    if (failure == EINPROGRESS) {
      pollfd waiting{socket.get(), POLLOUT, 0};
      const auto ms = std::chrono::ceil<std::chrono::milliseconds>(timeout).count();
      const int ready =
          ::poll(&waiting, 1, static_cast<int>(std::clamp<int64_t>(ms, 1, 3'600'000)));
      socklen_t size = sizeof failure;
      if (ready == 0) {
        failure = ETIMEDOUT;
      } else if (::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &failure, &size) != 0) {
        failure = errno;
      }
    }
    if (failure == 0) {
      const int one = 1;
      ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      return socket;
    }
    if (failure == ECONNREFUSED) {
      last.what = "nothing listens there";
      last.hint = "start a server with fsctl deploy, or check the host and port";
    } else if (failure == ETIMEDOUT) {
      last.what = "does not answer";
      last.hint = "check the host, the port and the firewall between";
    } else {
      last.what = fmt::format("cannot connect: {}", std::strerror(failure));
    }
  }
  return last;
}

}  // namespace fastserve
