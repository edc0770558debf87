// Tensors between two nodes, beside the messages that control them.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/clock.h"
#include "net/stream.h"

namespace fastserve {

/// Names a message. What the words mean is between its sender and its receiver.
struct BulkTag {
  uint64_t kind = 0, job = 0, step = 0, key = 0;
  auto operator<=>(const BulkTag&) const = default;
};

/// Bytes to send, and whatever keeps them in place until they have gone.
struct BulkSource {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

/// Room for a message, and whatever keeps it in place until the message is there.
struct BulkPlace {
  std::vector<std::span<std::byte>> parts;  ///< as long together as the message
  std::shared_ptr<void> owner;
};

/// What a lane hands its messages to. Called from the lane's threads, one call at a time: be quick.
/// A call may use the lane, but not destroy it.
class BulkReceiver {
 public:
  virtual ~BulkReceiver() = default;
  /// The first chunk of a message is here: where do its bytes go? An Error refuses the message; its
  /// bytes are dropped and the lane goes on.
  virtual Result<BulkPlace> place(const BulkTag& tag, uint64_t bytes) = 0;
  /// Every byte is in its place, as it was sent.
  virtual void arrived(const BulkTag& tag, BulkPlace place) = 0;
  /// The last call: the lane is of no further use. Messages that were under way are lost.
  virtual void closed(const Error& why) = 0;
};

/// Carries messages of any size both ways over one or more streams between the same two nodes.
///
/// A message is cut into chunks, each under its own checksum where the stream does not detect
/// changes itself, as TLS does. Chunks of the most urgent message go
/// first, so one that is sent late overtakes a long one that is under way. At most `window` chunks
/// of a direction are unconfirmed, which bounds what lies in the network's buffers, and so how long
/// an urgent message waits.
///
/// Owns:     its streams; one thread for each.
/// Threads:  send() from any thread.
/// Promises: a message arrives whole and unchanged, once, or the lane closes: the end of one of its
///           streams is the lane's. Messages arrive in the order in which their last bytes were
///           handed to the network, over however many streams. Memory: the sender's own buffers,
///           the receiver's own places, and nothing that grows.
/// Refuses:  a peer that breaks the format, exceeds a limit or fails a checksum (kCorrupt), one
///           that says nothing for `silence` (kUnavailable): the lane closes.
class BulkLane {
 public:
  struct Options {
    uint32_t chunk = 256 << 10;  ///< bytes; both sides may differ, up to 4 MiB
    uint32_t window = 8;         ///< chunks of a direction on their way, per stream
    uint64_t max_message = uint64_t{1} << 36;
    uint32_t max_open = 1024;  ///< messages begun and not ended by the peer
    Nanoseconds silence = std::chrono::seconds(5);
  };
  struct Counters {
    uint64_t bytes_sent = 0, bytes_received = 0;  ///< of messages, without headers
    uint64_t messages_sent = 0, messages_received = 0, messages_refused = 0;
  };

  /// `streams` lead to the same peer and are used in any order. `receiver` outlives the lane.
  /// kResourceExhausted when descriptors are out.
  static Result<std::unique_ptr<BulkLane>> start(std::vector<std::unique_ptr<Stream>> streams,
                                                 BulkReceiver& receiver, Options options);

  /// Cuts what is under way. closed() has been called when this returns.
  virtual ~BulkLane() = default;

  /// Queues a message made of `parts` joined. Lower `urgency` goes first; equal ones in order.
  /// After the lane has closed this does nothing: closed() has said so.
  virtual void send(const BulkTag& tag, std::vector<BulkSource> parts, uint32_t urgency) = 0;
  virtual uint64_t queued_bytes() const = 0;  ///< not yet handed to the network
  virtual Counters counters() const = 0;
};

}  // namespace fastserve
