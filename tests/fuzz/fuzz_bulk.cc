// What a peer may send over a bulk lane: any bytes as a header, and any sequence of well-formed
// chunks. Each message's bytes lie where the receiver said and are whole when it is said to arrive.
#include <algorithm>
#include <cstdint>

#include "net/bulk_frame.h"
#include "net/bulk_inbox.h"

using namespace fastserve;

namespace {

constexpr uint64_t kLargest = 300;

class Room final : public BulkReceiver {
 public:
  Result<BulkPlace> place(const BulkTag& tag, uint64_t bytes) override {
    FS_CHECK(bytes <= kLargest);
    if (tag.kind == 3) return Error{ErrorCode::kInvalidArgument, "unwanted", "", ""};
    auto room = std::make_shared<std::vector<std::byte>>(bytes);
    BulkPlace place;
    place.parts = {std::span(*room).first(bytes / 3), std::span(*room).subspan(bytes / 3)};
    place.owner = room;
    return place;
  }
  void arrived(const BulkTag& tag, BulkPlace place) override {
    FS_CHECK(tag.kind != 3);
    for (const std::byte byte : *std::static_pointer_cast<std::vector<std::byte>>(place.owner))
      FS_CHECK(byte == std::byte{1});  // written once: twice would be 2, never 0
  }
  void closed(const Error&) override {}
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  BulkFrame::Bytes header{};
  std::copy_n(reinterpret_cast<const std::byte*>(data), std::min(size, header.size()),
              header.begin());
  (void)BulkFrame::decode(header).ok();

  Room room;
  BulkLane::Options options;
  options.max_message = kLargest;
  options.max_open = 5;
  BulkInbox inbox(room, options);
  for (; size >= 5; data += 5, size -= 5) {
    BulkFrame frame;
    frame.kind = BulkFrame::Kind::kChunk;
    frame.message = data[0] % 8;
    frame.tag.kind = data[1] % 4;
    frame.total = data[2] * 2u;
    frame.offset = data[3] * 2u;
    frame.turn = data[1] / 4;
    frame.length = data[4] == 255 ? UINT32_MAX : data[4] * 2u;
    const auto decoded = BulkFrame::decode(frame.encode());
    FS_CHECK(decoded.ok() && decoded->length == frame.length && decoded->turn == frame.turn &&
             decoded->tag == frame.tag);
    const auto parts = inbox.begin(frame);
    if (!parts.ok()) return 0;  // the lane would close
    uint64_t bytes = 0;
    for (const std::span<std::byte> part : *parts) {
      bytes += part.size();
      for (std::byte& byte : part) byte = static_cast<std::byte>(static_cast<int>(byte) + 1);
    }
    FS_CHECK(bytes == 0 || bytes == frame.length);
    inbox.end(frame);
  }
  return 0;
}
