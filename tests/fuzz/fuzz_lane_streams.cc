// What peers may say of the streams of their lanes: any documents, in any order. A lane that comes
// out is whole, and all its streams are its peer's.
#include <sys/socket.h>

#include <algorithm>
#include <cstdint>

#include "net/lane_streams.h"

using namespace fastserve;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  LaneGathering gathering(std::chrono::milliseconds(1));
  while (size >= 2) {
    const uint8_t peer = data[0] % 3;
    const size_t length = std::min<size_t>(data[1], size - 2);
    int fds[2];
    FS_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    const Socket theirs(fds[1]);
    const uint8_t header[4] = {static_cast<uint8_t>(length), 0, 0, 0};
    FS_CHECK(::send(theirs.get(), header, 4, MSG_NOSIGNAL) == 4);
    (void)!::send(theirs.get(), data + 2, length, MSG_NOSIGNAL);
    TlsConnection connection;
    connection.stream = plain_stream(Socket(fds[0]), std::string(1, static_cast<char>('a' + peer)));
    connection.claim = NodeClaim{"cluster", connection.stream->peer(), {}, 0};
    auto added = gathering.add(std::move(connection));
    if (added.ok() && *added) {
      TlsConnection& lane = **added;
      FS_CHECK(lane.more.size() < LanePart::kMost && lane.claim->node == lane.stream->peer());
      for (const auto& stream : lane.more) FS_CHECK(stream->peer() == lane.claim->node);
    }
    data += 2 + length, size -= 2 + length;
  }
  return 0;
}
