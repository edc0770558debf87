// What a bulk lane has yet to send, in order of urgency. For net/ alone.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "net/bulk_frame.h"

namespace fastserve {

/// Cuts queued messages into chunks and gives out the most urgent chunk first.
///
/// Threads: any.
class BulkOutbox {
 public:
  struct Chunk {
    BulkFrame frame;
    std::vector<std::span<const std::byte>> bytes;    // frame.length in all
    std::vector<std::shared_ptr<const void>> owners;  // of the bytes
  };

  void add(const BulkTag& tag, std::vector<BulkSource> parts, uint32_t urgency);
  /// At most `limit` bytes of the most urgent message; nothing when there is none.
  std::optional<Chunk> next(uint32_t limit);
  void clear();
  uint64_t queued_bytes() const;
  uint64_t sent_bytes() const;  ///< handed out by next()
  uint64_t messages_sent() const;

 private:
  struct Message {
    uint64_t number = 0;
    BulkTag tag;
    std::vector<BulkSource> parts;
    uint64_t total = 0, sent = 0;
    size_t part = 0, at = 0;  // where the next chunk begins
  };

  mutable std::mutex mutex_;
  std::map<std::pair<uint32_t, uint64_t>, Message> messages_;  // by urgency, then age
  uint32_t turn_ = 0;  // of the message that was given out whole last
  uint64_t numbers_ = 0, queued_ = 0, sent_bytes_ = 0, messages_sent_ = 0;
};

}  // namespace fastserve
