// A connection's byte stream, with an eye on what the peer does not do.
#pragma once

#include <kj/async-io.h>
#include <kj/timer.h>

#include "rpc/read_budget.h"

namespace fastserve {

/// Passes bytes through, remembers when the peer last sent or took some, and stops reading from a
/// peer that keeps asking while it does not take the answers, so that those cannot pile up. Large
/// messages are read within a budget that all connections share.
///
/// Threads: the loop's.
class WatchedStream final : public kj::AsyncIoStream {
 public:
  WatchedStream(kj::Own<kj::AsyncIoStream> inner, kj::Timer& timer, ReadBudget& budget)
      : inner_(kj::mv(inner)), timer_(timer), budget_(budget), last_progress_(timer.now()) {}

  /// When bytes last moved in either direction.
  kj::TimePoint last_progress() const { return last_progress_; }
  /// When the large message began that the peer is in the middle of.
  kj::Maybe<kj::TimePoint> large_read_since() const { return large_read_since_; }
  /// The peer has not taken everything that was sent to it.
  bool blocked() const { return writes_ > 0; }

  kj::Promise<size_t> tryRead(void* buffer, size_t min_bytes, size_t max_bytes) override;
  kj::Promise<void> write(const void* buffer, size_t size) override;
  kj::Promise<void> write(kj::ArrayPtr<const kj::ArrayPtr<const kj::byte>> pieces) override;
  kj::Promise<void> whenWriteDisconnected() override { return inner_->whenWriteDisconnected(); }
  void shutdownWrite() override { inner_->shutdownWrite(); }
  void abortRead() override { inner_->abortRead(); }

 private:
  kj::Promise<void> watch(kj::Promise<void> write);
  kj::Promise<size_t> read_when_taken(void* buffer, size_t min_bytes, size_t max_bytes);
  kj::Promise<size_t> read_now(void* buffer, size_t min_bytes, size_t max_bytes);

  kj::Own<kj::AsyncIoStream> inner_;
  kj::Timer& timer_;
  ReadBudget& budget_;
  kj::TimePoint last_progress_;
  kj::Maybe<kj::TimePoint> large_read_since_;
  size_t writes_ = 0;              // begun and not ended
  uint64_t read_since_write_ = 0;  // bytes read since the peer last took something
  kj::Maybe<kj::Own<kj::PromiseFulfiller<void>>> reader_;  // waits for a write to end
};

}  // namespace fastserve
