// The first bytes on a control connection, before CAF speaks: they tie what a node says over CAF to
// the certificate that it showed. For actors/ alone.
#pragma once

#include <string>

#include "base/clock.h"
#include "net/stream.h"

namespace fastserve {

inline constexpr size_t kTicketBytes = 32;  ///< text

/// kUnavailable when the connection does not take them at once: it is new, so it does.
Status send_ticket(Stream& stream, const std::string& ticket);
/// kDeadlineExceeded after `timeout`.
Result<std::string> receive_ticket(Stream& stream, Nanoseconds timeout);

}  // namespace fastserve
