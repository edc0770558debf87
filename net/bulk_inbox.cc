#include "net/bulk_inbox.h"

#include <fmt/format.h>

#include <algorithm>

namespace fastserve {
namespace {

constexpr uint32_t kMaxChunk = 4 << 20;

Error corrupt(std::string what) { return {ErrorCode::kCorrupt, std::move(what), "", ""}; }

/// Adds [begin, end) and joins it with its neighbours; false when some of it was there.
bool add_range(std::map<uint64_t, uint64_t>& ranges, uint64_t begin, uint64_t end) {
  auto next = ranges.lower_bound(begin);
  if (next != ranges.end() && next->first < end) return false;
  if (next != ranges.begin()) {
    const auto before = std::prev(next);
    if (before->second > begin) return false;
    if (before->second == begin) {
      begin = before->first;
      ranges.erase(before);
    }
  }
  if (next != ranges.end() && next->first == end) {
    end = next->second;
    ranges.erase(next);
  }
  ranges.emplace(begin, end);
  return true;
}

/// The part [offset, offset + length) of `parts` joined.
std::vector<std::span<std::byte>> slice(const std::vector<std::span<std::byte>>& parts,
                                        uint64_t offset, uint64_t length) {
  std::vector<std::span<std::byte>> found;
  for (const std::span<std::byte> part : parts) {
    if (length == 0) break;
    if (offset >= part.size()) {
      offset -= part.size();
      continue;
    }
    const uint64_t n = std::min<uint64_t>(length, part.size() - offset);
    found.push_back(part.subspan(offset, n));
    length -= n;
    offset = 0;
  }
  return found;
}

}  // namespace

Result<BulkInbox::Message*> BulkInbox::find_or_open(const BulkFrame& frame) {
  const auto found = open_.find(frame.message);
  if (found != open_.end()) {
    if (found->second.tag == frame.tag && found->second.total == frame.total) return &found->second;
    return corrupt("sent two messages under one number");
  }
  if (frame.total > options_.max_message)
    return corrupt(fmt::format("announced a message of {} bytes; at most {} are taken", frame.total,
                               options_.max_message));
  if (open_.size() + whole_.size() >= options_.max_open)
    return corrupt(fmt::format("began more than {} messages at once", options_.max_open));
  Message message{frame.tag, frame.total, 0, {}, {}, false, 0};
  auto place = receiver_.place(frame.tag, frame.total);
  if (place.ok()) {
    message.place = std::move(*place);
    uint64_t room = 0;
    for (const auto& part : message.place.parts) room += part.size();
    FS_CHECK(room == frame.total);
  } else {
    message.refused = true;
    refused_++;
  }
  return &open_.emplace(frame.message, std::move(message)).first->second;
}

Status BulkInbox::take_turn(Message& message, const BulkFrame& frame) {
  if (frame.ends_message() != (frame.turn != 0))
    return corrupt("gave the end of a message no turn, or a turn to what is no end");
  if (frame.turn == 0) return {};
  // Turns run around: those to come are ahead by less than may be open.
  const uint32_t ahead =
      frame.turn >= next_turn_ ? frame.turn - next_turn_ : frame.turn + (UINT32_MAX - next_turn_);
  if (message.turn != 0 || ahead >= options_.max_open || !turns_.insert(frame.turn).second)
    return corrupt("gave a message a turn that is not to come");
  message.turn = frame.turn;
  return {};
}

Result<std::vector<std::span<std::byte>>> BulkInbox::begin(const BulkFrame& frame) {
  if (frame.length > kMaxChunk || frame.offset > frame.total ||
      frame.length > frame.total - frame.offset || (frame.length == 0 && frame.total > 0))
    return corrupt(fmt::format("sent a chunk of {} bytes at {} of a message of {}", frame.length,
                               frame.offset, frame.total));
  std::lock_guard lock(mutex_);
  std::vector<std::span<std::byte>> none;
  if (closed_) return none;
  FS_ASSIGN(Message* const message, find_or_open(frame));
  if (frame.length > 0 && !add_range(message->ranges, frame.offset, frame.offset + frame.length))
    return corrupt("sent a part of a message twice");
  FS_TRY(take_turn(*message, frame));
  if (message->refused) return none;
  return slice(message->place.parts, frame.offset, frame.length);
}

void BulkInbox::end(const BulkFrame& frame) {
  std::lock_guard lock(mutex_);
  const auto found = open_.find(frame.message);
  if (closed_ || found == open_.end()) return;
  Message& message = found->second;
  message.received += frame.length;
  bytes_ += frame.length;
  if (message.received < message.total) return;
  whole_.emplace(message.turn, std::move(message));
  open_.erase(found);
  for (auto next = whole_.find(next_turn_); next != whole_.end(); next = whole_.find(next_turn_)) {
    Message whole = std::move(next->second);
    whole_.erase(next);
    turns_.erase(next_turn_);
    next_turn_ = BulkFrame::turn_after(next_turn_);
    deliver(std::move(whole));
  }
}

void BulkInbox::deliver(Message message) {
  if (message.refused) return;
  messages_++;
  receiver_.arrived(message.tag, std::move(message.place));
}

void BulkInbox::close(const Error& why) {
  std::lock_guard lock(mutex_);
  if (closed_) return;
  closed_ = true;
  receiver_.closed(why);
}

}  // namespace fastserve
