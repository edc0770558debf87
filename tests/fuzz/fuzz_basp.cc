// What a peer may send to CAF's remoting: any bytes. What passes the guard is the beginning of what
// came, does not depend on how it was cut, and holds whole headers.
#include <algorithm>
#include <cstdint>

#include "net/basp_guard.h"

using namespace fastserve;

namespace {

struct Heard {
  bool ok = true;
  std::vector<std::byte> through;
};

Heard hear(std::span<const std::byte> bytes, BaspGuard::Peer peer, size_t piece) {
  BaspGuard::Options options;
  options.peer = peer;
  options.self[0] = std::byte{1};
  options.message_types = {"fs.Work"};
  BaspGuard guard(std::move(options));
  Heard heard;
  while (heard.ok && !bytes.empty()) {
    const size_t n = std::min(piece, bytes.size());
    const Status passed = guard.pass(bytes.first(n), heard.through);
    FS_CHECK(passed.ok() || (!passed.error().what.empty() && !passed.error().hint.empty()));
    heard.ok = passed.ok();
    bytes = bytes.subspan(n);
  }
  return heard;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  for (const BaspGuard::Peer peer : {BaspGuard::Peer::kCaller, BaspGuard::Peer::kAnswerer}) {
    const Heard whole = hear(bytes, peer, SIZE_MAX);
    FS_CHECK(whole.through.size() <= size);
    FS_CHECK(std::equal(whole.through.begin(), whole.through.end(), bytes.begin()));
    FS_CHECK(whole.through.empty() || whole.through.size() > BaspGuard::kHeaderBytes);
    for (const size_t piece : {1, 7, 40}) {
      const Heard again = hear(bytes, peer, piece);
      FS_CHECK(again.ok == whole.ok && again.through == whole.through);
    }
  }
  return 0;
}
