// A connection of net/ (TLS or plain) as KJ's event loop reads and writes it.
#pragma once

#include <kj/async-io.h>
#include <kj/async-unix.h>

#include <memory>
#include <vector>

#include "net/stream.h"

namespace fastserve {

/// Owns:    the stream.
/// Threads: the loop's.
/// Errors:  a broken connection throws a DISCONNECTED exception, as KJ's own streams do.
class ClusterStream final : public kj::AsyncIoStream {
 public:
  ClusterStream(std::unique_ptr<Stream> stream, kj::UnixEventPort& port)
      : stream_(std::move(stream)),
        observer_(port, stream_->fd(), kj::UnixEventPort::FdObserver::OBSERVE_READ_WRITE),
        readable_(observer_),
        writable_(observer_) {}
  ~ClusterStream() { stream_->shut_down(); }

  kj::Promise<size_t> tryRead(void* buffer, size_t min_bytes, size_t max_bytes) override;
  kj::Promise<void> write(const void* buffer, size_t size) override;
  kj::Promise<void> write(kj::ArrayPtr<const kj::ArrayPtr<const kj::byte>> pieces) override;
  kj::Promise<void> whenWriteDisconnected() override { return observer_.whenWriteDisconnected(); }
  void shutdownWrite() override { stream_->shut_down(); }
  void abortRead() override {}

 private:
  using Observer = kj::UnixEventPort::FdObserver;

  /// The next time that the socket becomes ready, for all who wait: TLS may want to write in order
  /// to read, so that both directions can wait for the same thing.
  template <kj::Promise<void> (Observer::*kReady)()>
  class Ready {
   public:
    explicit Ready(Observer& observer) : observer_(observer) {}
    kj::Promise<void> wait() {
      if (!waiting_) {
        waiting_ = true;
        next_ = (observer_.*kReady)().then([this]() { waiting_ = false; }).fork();
      }
      return next_.addBranch();
    }

   private:
    Observer& observer_;
    bool waiting_ = false;
    kj::ForkedPromise<void> next_ = nullptr;
  };

  using Parts = std::vector<std::span<const std::byte>>;
  kj::Promise<size_t> read_on(std::byte* into, size_t min_bytes, size_t max_bytes, size_t got);
  kj::Promise<void> write_on(Parts parts);
  kj::Promise<void> wait_for(Moved::Wants wants);

  std::unique_ptr<Stream> stream_;
  Observer observer_;
  Ready<&Observer::whenBecomesReadable> readable_;
  Ready<&Observer::whenBecomesWritable> writable_;
};

}  // namespace fastserve
