// A TLS 1.3 connection after its handshake. For net/ alone.
#pragma once

#include "net/stream.h"
#include "net/tls_record.h"

namespace fastserve {

/// Seals what is written straight from where it lies, many records a send, and opens what comes
/// straight into its place: OpenSSL's own record layer copies everything once more at each end, and
/// asks the kernel for 16 KiB at a time.
///
/// The sender's key is replaced after `records_per_key`, which is what AES-GCM bears (RFC 8446,
/// 5.5); OpenSSL leaves that to who uses it.
std::unique_ptr<Stream> tls_stream(Socket socket, RecordKey sealing, RecordKey opening,
                                   std::string peer, uint64_t records_per_key = 1 << 24);

}  // namespace fastserve
