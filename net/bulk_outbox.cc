#include "net/bulk_outbox.h"

#include <algorithm>

namespace fastserve {

void BulkOutbox::add(const BulkTag& tag, std::vector<BulkSource> parts, uint32_t urgency) {
  Message message;
  message.tag = tag;
  for (const BulkSource& part : parts) message.total += part.bytes.size();
  message.parts = std::move(parts);
  std::lock_guard lock(mutex_);
  message.number = numbers_++;
  queued_ += message.total;
  messages_.emplace(std::pair(urgency, message.number), std::move(message));
}

std::optional<BulkOutbox::Chunk> BulkOutbox::next(uint32_t limit) {
  std::lock_guard lock(mutex_);
  if (messages_.empty()) return std::nullopt;
  Message& message = messages_.begin()->second;
  Chunk chunk;
  chunk.frame.kind = BulkFrame::Kind::kChunk;
  chunk.frame.message = message.number;
  chunk.frame.tag = message.tag;
  chunk.frame.total = message.total;
  chunk.frame.offset = message.sent;
  for (; message.part < message.parts.size() && chunk.frame.length < limit;) {
    const BulkSource& source = message.parts[message.part];
    const size_t n = std::min<size_t>(limit - chunk.frame.length, source.bytes.size() - message.at);
    if (n > 0) {
      chunk.bytes.push_back(source.bytes.subspan(message.at, n));
      chunk.owners.push_back(source.owner);
    }
    chunk.frame.length += static_cast<uint32_t>(n);
    message.at += n;
    if (message.at < source.bytes.size()) break;
    message.part++;
    message.at = 0;
  }
  message.sent += chunk.frame.length;
  queued_ -= chunk.frame.length;
  sent_bytes_ += chunk.frame.length;
  if (message.sent == message.total) {
    messages_sent_++;
    chunk.frame.turn = turn_ = BulkFrame::turn_after(turn_);
    messages_.erase(messages_.begin());
  }
  return chunk;
}

void BulkOutbox::clear() {
  std::lock_guard lock(mutex_);
  messages_.clear();
  queued_ = 0;
}

uint64_t BulkOutbox::queued_bytes() const {
  std::lock_guard lock(mutex_);
  return queued_;
}

uint64_t BulkOutbox::sent_bytes() const {
  std::lock_guard lock(mutex_);
  return sent_bytes_;
}

uint64_t BulkOutbox::messages_sent() const {
  std::lock_guard lock(mutex_);
  return messages_sent_;
}

}  // namespace fastserve
