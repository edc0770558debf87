// Short texts over a stream, each after its length: for exchanges before any other protocol runs.
#pragma once

#include <string>
#include <string_view>

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

/// Now, on the clock that deadlines are told by.
Nanoseconds steady_now();

}  // namespace fastserve
