// What a bulk lane is receiving: where each chunk goes, and when a message is whole. For net/
// alone.
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "net/bulk_frame.h"

namespace fastserve {

/// A message that is whole waits until those before it, by their turns, are whole, too: over
/// several streams messages arrive in the order that they would have over one.
///
/// Threads: any; calls into the receiver are one at a time.
class BulkInbox {
 public:
  BulkInbox(BulkReceiver& receiver, const BulkLane::Options& options)
      : receiver_(receiver), options_(options) {}

  /// Where the chunk's bytes go: frame.length in all, or nothing when its message was refused.
  /// kCorrupt when the frame contradicts the limits or what came before.
  Result<std::vector<std::span<std::byte>>> begin(const BulkFrame& frame);
  /// The chunk of begin() is in place, as it was sent.
  void end(const BulkFrame& frame);
  /// Tells the receiver once; later calls do nothing, and nothing else is called after it.
  void close(const Error& why);

  // Without the lock that calls to the receiver are made under, so that it may ask.
  uint64_t bytes_received() const { return bytes_; }
  uint64_t messages_received() const { return messages_; }
  uint64_t messages_refused() const { return refused_; }

 private:
  struct Message {
    BulkTag tag;
    uint64_t total = 0, received = 0;
    std::map<uint64_t, uint64_t> ranges;  // begin -> end of what was announced, without overlaps
    BulkPlace place;
    bool refused = false;
    uint32_t turn = 0;  // 0: its last chunk was not announced yet
  };
  Result<Message*> find_or_open(const BulkFrame& frame);
  Status take_turn(Message& message, const BulkFrame& frame);
  void deliver(Message message);

  BulkReceiver& receiver_;
  const BulkLane::Options options_;
  std::mutex mutex_;
  std::map<uint64_t, Message> open_;   // by the sender's number
  std::map<uint32_t, Message> whole_;  // by their turns, which have not come
  std::set<uint32_t> turns_;           // that were announced and have not come
  uint32_t next_turn_ = 1;
  std::atomic<uint64_t> bytes_{0}, messages_{0}, refused_{0};
  bool closed_ = false;
};

}  // namespace fastserve
