#include "net/stream.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace fastserve {
namespace {

class PlainStream final : public Stream {
 public:
  PlainStream(Socket socket, std::string peer)
      : socket_(std::move(socket)), peer_(std::move(peer)) {}

  Result<Moved> read(std::span<std::byte> into) override {
    const ssize_t got = ::recv(socket_.get(), into.data(), into.size(), MSG_DONTWAIT);
    if (got > 0) return Moved{static_cast<size_t>(got)};
    if (got == 0) return Moved{.closed = true};
    return after_failure(Moved::Wants::kReadable);
  }

  Result<Moved> write(std::span<const std::span<const std::byte>> parts) override {
    std::array<iovec, 16> pieces;
    const size_t n = std::min(parts.size(), pieces.size());
    for (size_t i = 0; i < n; i++)
      pieces[i] = {const_cast<std::byte*>(parts[i].data()), parts[i].size()};
    msghdr message{};
    message.msg_iov = pieces.data();
    message.msg_iovlen = n;
    const ssize_t sent = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) return Moved{static_cast<size_t>(sent)};
    return after_failure(Moved::Wants::kWritable);
  }

  void shut_down() override { ::shutdown(socket_.get(), SHUT_WR); }
  int fd() const override { return socket_.get(); }
  const std::string& peer() const override { return peer_; }

 private:
  Result<Moved> after_failure(Moved::Wants wants) const {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return Moved{.wants = wants};
    return Error{ErrorCode::kUnavailable,
                 fmt::format("the connection broke: {}", std::strerror(errno)), peer_, ""};
  }

  Socket socket_;
  std::string peer_;
};

}  // namespace

std::unique_ptr<Stream> plain_stream(Socket socket, std::string peer) {
  return std::make_unique<PlainStream>(std::move(socket), std::move(peer));
}

StreamCut::StreamCut(const Stream& stream) : fd_(::fcntl(stream.fd(), F_DUPFD_CLOEXEC, 0)) {}

void StreamCut::cut() const {
  if (fd_.get() >= 0) ::shutdown(fd_.get(), SHUT_RDWR);
}

}  // namespace fastserve
