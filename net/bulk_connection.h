// One stream of a bulk lane. For net/ alone.
#pragma once

#include <atomic>

#include "net/bulk_inbox.h"
#include "net/bulk_outbox.h"
#include "net/wake.h"

namespace fastserve {

/// Moves chunks from the outbox to the stream and from the stream to the inbox.
///
/// Threads: run() is the thread; wake() and stop() from any.
class BulkConnection {
 public:
  BulkConnection(std::unique_ptr<Stream> stream, Wake wake, BulkOutbox& outbox, BulkInbox& inbox,
                 const BulkLane::Options& options)
      : stream_(std::move(stream)),
        wake_(std::move(wake)),
        outbox_(outbox),
        inbox_(inbox),
        options_(options) {}

  /// Returns when the stream is of no further use, with the reason, or after stop().
  Error run();
  /// There is something to send.
  void wake() { wake_.notify(); }
  void stop();

 private:
  /// True when bytes moved.
  Result<bool> send_some(bool nothing_came);
  Result<bool> receive_some();
  void choose_next_frame(Nanoseconds now, bool nothing_came);
  void start_frame(const BulkFrame& frame);
  void confirm();
  Status take_frame();
  Status end_chunk();
  void sleep();
  Error named(Error error) const;

  std::unique_ptr<Stream> stream_;
  Wake wake_;
  BulkOutbox& outbox_;
  BulkInbox& inbox_;
  const BulkLane::Options options_;
  std::atomic<bool> stopped_{false};
  Moved::Wants read_wants_ = Moved::Wants::kReadable, write_wants_ = Moved::Wants::kNothing;

  // Going out: a frame's header and chunk, as far as they are not yet written.
  BulkFrame::Bytes out_header_;
  std::vector<std::span<const std::byte>> out_;
  size_t out_at_ = 0;  // parts written whole
  std::vector<std::shared_ptr<const void>> out_owners_;
  uint32_t unconfirmed_ = 0;  // chunks
  Nanoseconds last_sent_{0};

  // Coming in: a header, then its chunk.
  BulkFrame::Bytes in_header_;
  size_t in_header_bytes_ = 0;
  BulkFrame in_;
  std::vector<std::span<std::byte>> in_parts_;  // where the chunk goes; none: dropped
  size_t in_part_ = 0, in_part_bytes_ = 0;
  uint32_t in_left_ = 0;  // bytes of the chunk to come
  std::vector<std::byte> dropped_;
  uint32_t owed_ = 0;  // chunks dealt with and not yet confirmed
  Nanoseconds last_heard_{0};
};

}  // namespace fastserve
