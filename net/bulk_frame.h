// The header before every chunk of a bulk lane. For net/ alone.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "net/bulk_lane.h"

namespace fastserve {

/// 88 bytes, little-endian, in the order below after a magic word; the last 8 are XXH3 of the rest.
struct BulkFrame {
  enum class Kind : uint8_t {
    kChunk = 1,   ///< `length` bytes of message `message` follow, from `offset` on
    kCredit = 2,  ///< `length` chunks were dealt with
    kAlive = 3,   ///< nothing else to say
  };
  static constexpr size_t kBytes = 88;
  using Bytes = std::array<std::byte, kBytes>;

  Kind kind = Kind::kAlive;
  uint64_t message = 0;  ///< numbers the sender's messages
  BulkTag tag;
  uint64_t total = 0, offset = 0;
  uint32_t length = 0;
  /// In a message's last chunk: whose turn it is to arrive. From 1 on, in the order in which
  /// messages were sent whole; after the largest comes 1 again. 0 in all other frames.
  uint32_t turn = 0;
  uint64_t checksum = 0;  ///< XXH3 of the chunk; 0 on a stream that detects changes itself

  bool ends_message() const { return offset + length == total; }
  static uint32_t turn_after(uint32_t turn) { return turn == UINT32_MAX ? 1 : turn + 1; }
  Bytes encode() const;
  /// kCorrupt when these bytes are no frame of any kind.
  static Result<BulkFrame> decode(const Bytes& bytes);
};

}  // namespace fastserve
