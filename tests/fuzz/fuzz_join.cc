// What a stranger may send to a coordinator's port, and a coordinator to a node: any bytes as a
// request to join or its answer. What is read is within its limits, and reads the same again.
#include <cstdint>
#include <string>

#include "base/check.h"
#include "net/join_documents.h"

using namespace fastserve;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto ask = parse_join_ask(text); ask.ok()) {
    FS_CHECK(ask->oldest <= kJoinProtocolNewest && ask->newest >= kJoinProtocolOldest);
    FS_CHECK(ask->name.size() <= 256 && ask->token.size() <= 256 && ask->roles.size() <= 16);
    FS_CHECK(ask->request.size() <= 16 << 10 && ask->lanes >= 0);
    const auto again = parse_join_ask(encode(*ask));
    FS_CHECK(again.ok() && again->name == ask->name && again->roles == ask->roles);
  }
  const auto grant = parse_join_grant(text);
  if (grant.ok()) {
    const auto again = parse_join_grant(encode(*grant));
    FS_CHECK(again.ok() && again->certificate == grant->certificate);
  } else {
    // A refusal is passed on, and says the same.
    const auto again = parse_join_grant(encode_refusal(grant.error()));
    FS_CHECK(!again.ok() && again.error().code == grant.error().code);
  }
  return 0;
}
