// The client's end of a stream of events.
#pragma once

#include <kj/async.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "rpc/messages.h"

namespace fastserve {

/// A running generation in a client: its events on their way from the loop's thread to the
/// caller's.
///
/// Threads:  as marked; the two halves may run at the same time.
/// Promises: the server is answered at once while the caller keeps up, and only after release()
///           when it lags more than kEventsAhead events behind.
class Receiving {
 public:
  static constexpr size_t kEventsAhead = 8;

  // On the loop's thread.

  /// False: answer the server only after release().
  bool add(GenerateEvent event) {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
    news_.notify_all();
    holding_ = holding_ || events_.size() > kEventsAhead;
    return !holding_;
  }
  /// No more events will come; `why` when that is not because the last one came.
  void fail(Error why) {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::move(why);
    news_.notify_all();
  }
  void answered() {
    const std::lock_guard lock(mutex_);
    answered_ = true;
    news_.notify_all();
  }
  /// The server answered a call that asks for nothing else.
  void sign_of_life() {
    const std::lock_guard lock(mutex_);
    alive_ = true;
    news_.notify_all();
  }
  void cancel() {
    cancelled = true;
    KJ_IF_MAYBE (running, generation) {
      calls.push_back(running->cancelRequest().send().ignoreResult().eagerlyEvaluate(nullptr));
    }
  }
  void release() {
    for (auto& answer : held) answer->fulfill();
    held.clear();
  }
  void drop() {
    release();
    calls.clear();
    generation = nullptr;
  }

  // Only touched on the loop's thread.
  kj::Maybe<wire::Generation::Client> generation;
  std::vector<kj::Own<kj::PromiseFulfiller<void>>> held;
  std::list<kj::Promise<void>> calls;
  bool cancelled = false;

  // On the caller's thread.

  struct News {
    std::optional<GenerateEvent> event;
    std::optional<Error> failure;
    bool answered = false;  ///< the server took the request
    bool release = false;   ///< the caller has caught up: release() is due
    bool alive = false;     ///< the server spoke since the last news
  };
  News wait(Nanoseconds timeout) {
    std::unique_lock lock(mutex_);
    const bool known = answered_;
    news_.wait_for(lock, timeout,
                   [&] { return !events_.empty() || failure_ || answered_ != known || alive_; });
    News news;
    news.answered = answered_;
    news.alive = alive_ || !events_.empty() || answered_ != known;
    alive_ = false;
    if (!events_.empty()) {
      news.event = std::move(events_.front());
      events_.pop_front();
      news.release = holding_ && events_.empty();
      if (news.release) holding_ = false;
    } else {
      news.failure = failure_;
    }
    return news;
  }

 private:
  std::mutex mutex_;
  std::condition_variable news_;
  std::deque<GenerateEvent> events_;
  std::optional<Error> failure_;
  bool answered_ = false;
  bool alive_ = false;
  bool holding_ = false;
};

/// The capability that a server pushes a generation's events to.
class SinkServer final : public wire::EventSink::Server {
 public:
  explicit SinkServer(std::shared_ptr<Receiving> receiving) : receiving_(std::move(receiving)) {}
  kj::Promise<void> push(PushContext context) override {
    if (receiving_->add(read_event(context.getParams().getEvent()))) return kj::READY_NOW;
    context.releaseParams();
    auto answer = kj::newPromiseAndFulfiller<void>();
    receiving_->held.push_back(kj::mv(answer.fulfiller));
    return kj::mv(answer.promise);
  }

 private:
  const std::shared_ptr<Receiving> receiving_;
};

}  // namespace fastserve
