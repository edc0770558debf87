// Short texts over a stream, each after its length: for exchanges before any other protocol runs.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "base/cancel.h"
#include "net/stream.h"

namespace fastserve {

/// The longest document: enough for a certificate and more, too little to fill memory.
inline constexpr uint32_t kLongestDocument = 64 << 10;

// Both block until `deadline` (of the steady clock) at most.
// Errors: kDeadlineExceeded, kUnavailable for a connection that breaks or ends early, kCorrupt for
// a length above the limit.

/// Four bytes of length, the lowest first, then the text.
Status send_document(Stream& stream, std::string_view text, Nanoseconds deadline);
Result<std::string> receive_document(Stream& stream, Nanoseconds deadline);

// Many bytes, whose number both sides know. `patience`: how long none may move at all.
// Errors: as above, and kCancelled soon after `cancel` (may be null) is raised.
Status send_bytes(Stream& stream, std::span<const std::byte> bytes, Nanoseconds patience,
                  const CancelFlag* cancel);
Status receive_bytes(Stream& stream, std::span<std::byte> into, Nanoseconds patience,
                     const CancelFlag* cancel);

/// Now, on the clock that deadlines are told by.
Nanoseconds steady_now();

}  // namespace fastserve
