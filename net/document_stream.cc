#include "net/document_stream.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <array>

namespace fastserve {
namespace {

constexpr size_t kLengthBytes = 4;

Status wait_for(const Stream& stream, Moved::Wants wants, Nanoseconds deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - steady_now()).count();
  if (left <= 0)
    return Error{ErrorCode::kDeadlineExceeded, "does not answer in time", stream.peer(),
                 "see whether the peer and the network are well, and try again"};
  pollfd waiting{stream.fd(),
                 static_cast<short>(wants == Moved::Wants::kWritable ? POLLOUT : POLLIN), 0};
  ::poll(&waiting, 1, static_cast<int>(std::min<int64_t>(left, 200)));
  return {};
}

Error ended_early(const Stream& stream) {
  return {ErrorCode::kUnavailable, "ended the connection in the middle", stream.peer(),
          "try again"};
}

Status go_on(const Stream& stream, const CancelFlag* cancel) {
  if (cancel == nullptr || !cancel->raised()) return {};
  return Error{ErrorCode::kCancelled, "the transfer was stopped", stream.peer(), ""};
}

Status read_whole(Stream& stream, std::span<std::byte> into, Nanoseconds deadline) {
  while (!into.empty()) {
    FS_ASSIGN(const Moved moved, stream.read(into));
    if (moved.closed) return ended_early(stream);
    into = into.subspan(moved.bytes);
    if (moved.bytes == 0) FS_TRY(wait_for(stream, moved.wants, deadline));
  }
  return {};
}

}  // namespace

Nanoseconds steady_now() { return SystemClock().now(); }

Status send_bytes(Stream& stream, std::span<const std::byte> bytes, Nanoseconds patience,
                  const CancelFlag* cancel) {
  for (Nanoseconds deadline = steady_now() + patience; !bytes.empty();) {
    FS_TRY(go_on(stream, cancel));
    FS_ASSIGN(const Moved moved, stream.write({&bytes, 1}));
    bytes = bytes.subspan(moved.bytes);
    if (moved.bytes > 0)
      deadline = steady_now() + patience;
    else
      FS_TRY(wait_for(stream, moved.wants, deadline));
  }
  return {};
}

Status receive_bytes(Stream& stream, std::span<std::byte> into, Nanoseconds patience,
                     const CancelFlag* cancel) {
  for (Nanoseconds deadline = steady_now() + patience; !into.empty();) {
    FS_TRY(go_on(stream, cancel));
    FS_ASSIGN(const Moved moved, stream.read(into));
    if (moved.closed) return ended_early(stream);
    into = into.subspan(moved.bytes);
    if (moved.bytes > 0)
      deadline = steady_now() + patience;
    else
      FS_TRY(wait_for(stream, moved.wants, deadline));
  }
  return {};
}

Status send_document(Stream& stream, std::string_view text, Nanoseconds deadline) {
  FS_CHECK(text.size() <= kLongestDocument);
  std::string wire;
  for (size_t i = 0; i < kLengthBytes; i++)
    wire += static_cast<char>(text.size() >> (8 * i) & 0xff);
  wire += text;
  std::span<const std::byte> left = std::as_bytes(std::span(wire));
  while (!left.empty()) {
    FS_ASSIGN(const Moved moved, stream.write({&left, 1}));
    left = left.subspan(moved.bytes);
    if (moved.bytes == 0) FS_TRY(wait_for(stream, moved.wants, deadline));
  }
  return {};
}

Result<std::string> receive_document(Stream& stream, Nanoseconds deadline) {
  std::array<std::byte, kLengthBytes> length_bytes{};
  FS_TRY(read_whole(stream, length_bytes, deadline));
  uint32_t length = 0;
  for (size_t i = 0; i < kLengthBytes; i++)
    length |= static_cast<uint32_t>(length_bytes[i]) << (8 * i);
  if (length > kLongestDocument)
    return Error{ErrorCode::kCorrupt,
                 fmt::format("announces a document of {} bytes, and the limit is {}", length,
                             kLongestDocument),
                 stream.peer(), "the peer may be of another version, or no FastServe"};
  std::string text(length, '\0');
  FS_TRY(read_whole(stream, std::as_writable_bytes(std::span(text)), deadline));
  return text;
}

}  // namespace fastserve
