#include "rpc/watched_stream.h"

namespace fastserve {
namespace {

// What a peer may still ask while it takes no answers.
constexpr uint64_t kReadWhileBlocked = 256 << 10;
// Reads from this size on need a share of the budget.
constexpr uint64_t kLargeRead = 64 << 10;

}  // namespace

kj::Promise<size_t> WatchedStream::tryRead(void* buffer, size_t min_bytes, size_t max_bytes) {
  if (min_bytes < kLargeRead) return read_when_taken(buffer, min_bytes, max_bytes);
  // The body of a message is read in one go: its memory is touched from here on.
  return budget_.take(min_bytes).then(
      [this, buffer, min_bytes, max_bytes](kj::Own<ReadBudget::Share> share) {
        large_read_since_ = timer_.now();
        return read_when_taken(buffer, min_bytes, max_bytes)
            .then([this](size_t bytes) {
              large_read_since_ = nullptr;
              return bytes;
            })
            .attach(kj::mv(share));
      });
}

kj::Promise<size_t> WatchedStream::read_when_taken(void* buffer, size_t min_bytes,
                                                   size_t max_bytes) {
  if (writes_ == 0 || read_since_write_ < kReadWhileBlocked)
    return read_now(buffer, min_bytes, max_bytes);
  auto paf = kj::newPromiseAndFulfiller<void>();
  reader_ = kj::mv(paf.fulfiller);
  return paf.promise.then(
      [this, buffer, min_bytes, max_bytes]() { return read_now(buffer, min_bytes, max_bytes); });
}

kj::Promise<size_t> WatchedStream::read_now(void* buffer, size_t min_bytes, size_t max_bytes) {
  return inner_->tryRead(buffer, min_bytes, max_bytes).then([this](size_t bytes) {
    last_progress_ = timer_.now();
    read_since_write_ += bytes;
    return bytes;
  });
}

kj::Promise<void> WatchedStream::write(const void* buffer, size_t size) {
  return watch(inner_->write(buffer, size));
}

kj::Promise<void> WatchedStream::write(kj::ArrayPtr<const kj::ArrayPtr<const kj::byte>> pieces) {
  return watch(inner_->write(pieces));
}

kj::Promise<void> WatchedStream::watch(kj::Promise<void> write) {
  if (writes_++ == 0) read_since_write_ = 0;
  const auto ended = [this]() {
    writes_--;
    KJ_IF_MAYBE (reader, reader_) {
      (*reader)->fulfill();
      reader_ = nullptr;
    }
  };
  return write.then(
      [this, ended]() {
        read_since_write_ = 0;
        last_progress_ = timer_.now();
        ended();
      },
      [ended](kj::Exception&& exception) {
        ended();  // reading on finds out what became of the connection
        kj::throwFatalException(kj::mv(exception));
      });
}

}  // namespace fastserve
