// What a peer may send after a handshake: any records, sealed as they should be, of any type, in
// any pieces; and bytes that are none. Nothing is read but what was sealed as data, in its order.
#include <sys/socket.h>

#include <algorithm>
#include <cstdint>

#include "net/tls_stream.h"

using namespace fastserve;

namespace {

RecordKey key_of(RecordKey::Use use) {
  return RecordKey::create({EVP_aes_128_gcm(), EVP_sha256()},
                           TrafficSecret(std::vector<unsigned char>(32, 1)), use, 0)
      .value();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  int fds[2];
  FS_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
  const Socket peer(fds[1]);
  RecordKey sealing = key_of(RecordKey::Use::kSeal);
  const auto stream = tls_stream(Socket(fds[0]), key_of(RecordKey::Use::kSeal),
                                 key_of(RecordKey::Use::kOpen), "peer", 3);
  const auto send = [&](std::span<const std::byte> bytes) {
    (void)!::send(peer.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  };
  std::vector<std::byte> sent, got;  // as data
  std::byte room[300];
  while (size >= 3) {
    const uint8_t type = data[0], length = data[1], reads = data[2];
    data += 3, size -= 3;
    const auto content = std::as_bytes(std::span(data, std::min<size_t>(length, size)));
    data += content.size(), size -= content.size();
    if (type == 255) {
      send(content);  // no record at all
    } else {
      std::vector<std::byte> record(content.size() + kRecordExtra);
      FS_CHECK(sealing.seal(RecordType{type}, {&content, 1}, content.size(), record.data()).ok());
      send(record);
      if (type == 23) sent.insert(sent.end(), content.begin(), content.end());
      const bool update = type == 22 && content.size() == 5 && content[0] == std::byte{24};
      if (update) FS_CHECK(sealing.advance().ok());
    }
    const auto came = stream->read(std::span(room).first(1 + reads));
    if (!came.ok() || came->closed) return 0;
    got.insert(got.end(), room, room + came->bytes);
    // Padding makes data of other types, too: only sequences without it are followed further.
    if (type == 0) return 0;
    FS_CHECK(got.size() <= sent.size() && std::equal(got.begin(), got.end(), sent.begin()));
    const std::span<const std::byte> part(room, 1 + reads % 20);
    if (!stream->write({&part, 1}).ok()) return 0;
  }
  return 0;
}
