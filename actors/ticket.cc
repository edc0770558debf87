#include "actors/ticket.h"

#include <poll.h>

#include "base/check.h"

namespace fastserve {

Status send_ticket(Stream& stream, const std::string& ticket) {
  FS_CHECK(ticket.size() == kTicketBytes);
  const std::span<const std::byte> bytes = std::as_bytes(std::span(ticket));
  FS_ASSIGN(const Moved moved, stream.write({&bytes, 1}));
  if (moved.bytes == kTicketBytes) return {};
  return Error{ErrorCode::kUnavailable, "takes no bytes", stream.peer(), ""};
}

Result<std::string> receive_ticket(Stream& stream, Nanoseconds timeout) {
  const SystemClock clock;
  const Nanoseconds until = clock.now() + timeout;
  std::string ticket(kTicketBytes, '\0');
  size_t got = 0;
  for (;;) {
    FS_ASSIGN(const Moved moved,
              stream.read(std::as_writable_bytes(std::span(ticket)).subspan(got)));
    got += moved.bytes;
    if (got == kTicketBytes) return ticket;
    if (moved.closed) return Error{ErrorCode::kUnavailable, "has hung up", stream.peer(), ""};
    const Nanoseconds left = until - clock.now();
    if (left.count() <= 0)
      return Error{ErrorCode::kDeadlineExceeded, "does not answer", stream.peer(), ""};
    pollfd wait{stream.fd(),
                static_cast<short>(moved.wants == Moved::Wants::kWritable ? POLLOUT : POLLIN), 0};
    if (moved.bytes == 0)
      ::poll(&wait, 1,
             static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(left).count()));
  }
}

}  // namespace fastserve
