// A bound on what half-received messages hold over all connections.
#pragma once

#include <kj/async.h>

#include <cstdint>
#include <deque>

namespace fastserve {

/// Lets the large messages that peers are still sending use a given amount of memory together. Who
/// finds it used up waits its turn.
///
/// Threads:  the loop's.
/// Promises: shares are handed out in the order they were asked for; a message larger than the
///           whole budget gets its share alone.
class ReadBudget {
 public:
  explicit ReadBudget(uint64_t bytes) : most_(bytes) {}
  KJ_DISALLOW_COPY(ReadBudget);

  /// Given back when it is dropped. The budget outlives it.
  class Share {
   public:
    Share(ReadBudget& budget, uint64_t bytes) : budget_(budget), bytes_(bytes) {
      budget_.used_ += bytes_;
    }
    ~Share() {
      budget_.used_ -= bytes_;
      budget_.hand_out();
    }
    KJ_DISALLOW_COPY(Share);

   private:
    ReadBudget& budget_;
    const uint64_t bytes_;
  };
  kj::Promise<kj::Own<Share>> take(uint64_t bytes) {
    auto turn = kj::newPromiseAndFulfiller<kj::Own<Share>>();
    waiting_.push_back({bytes, kj::mv(turn.fulfiller)});
    hand_out();
    return kj::mv(turn.promise);
  }

 private:
  struct Waiting {
    uint64_t bytes;
    kj::Own<kj::PromiseFulfiller<kj::Own<Share>>> turn;
  };
  void hand_out() {
    while (!waiting_.empty()) {
      const bool gone = !waiting_.front().turn->isWaiting();
      const uint64_t bytes = waiting_.front().bytes;
      if (!gone && used_ > 0 && used_ + bytes > most_) return;
      Waiting next = std::move(waiting_.front());
      waiting_.pop_front();
      if (!gone) next.turn->fulfill(kj::heap<Share>(*this, bytes));
    }
  }

  const uint64_t most_;
  uint64_t used_ = 0;
  std::deque<Waiting> waiting_;
};

}  // namespace fastserve
