// A watch in a client: its updates on their way from the loop's thread to the caller's.
#pragma once

#include <kj/async.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>

#include "rpc/cluster_messages.h"

namespace fastserve {

/// Threads:  as marked; the two halves may run at the same time.
/// Promises: the coordinator is answered after release() alone, so that one update is here at most.
class ClusterWatched {
 public:
  // On the loop's thread.

  kj::Promise<void> add(Result<UpdateContent> update) {
    auto answer = kj::newPromiseAndFulfiller<void>();
    held_ = kj::mv(answer.fulfiller);  // one that pushes more than it may is not answered
    const std::lock_guard lock(mutex_);
    update_ = std::move(update);
    news_.notify_all();
    return kj::mv(answer.promise);
  }
  /// No more updates will come.
  void fail(Error why) {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::move(why);
    news_.notify_all();
  }
  void release() {
    KJ_IF_MAYBE (held, held_) {
      (*held)->fulfill();
      held_ = nullptr;
    }
  }
  void drop() {
    release();
    watching = nullptr;
    dropped = true;
  }

  // Only touched on the loop's thread.
  kj::Maybe<wire::Watching::Client> watching;
  bool dropped = false;

  // On the caller's thread.

  /// Neither set: the time is over.
  struct News {
    std::optional<Result<UpdateContent>> update;
    std::optional<Error> failure;
  };
  News wait(Nanoseconds timeout) {
    std::unique_lock lock(mutex_);
    news_.wait_for(lock, timeout, [&] { return update_ || failure_; });
    News news;
    if (update_)
      news.update = std::exchange(update_, std::nullopt);
    else
      news.failure = failure_;
    return news;
  }

 private:
  kj::Maybe<kj::Own<kj::PromiseFulfiller<void>>> held_;  // the loop's
  std::mutex mutex_;
  std::condition_variable news_;
  std::optional<Result<UpdateContent>> update_;
  std::optional<Error> failure_;
};

/// The capability that a coordinator pushes updates to.
class UpdateSinkServer final : public wire::UpdateSink::Server {
 public:
  explicit UpdateSinkServer(std::shared_ptr<ClusterWatched> watched)
      : watched_(std::move(watched)) {}
  kj::Promise<void> push(PushContext context) override {
    if (watched_->dropped) return kj::READY_NOW;
    auto answer = watched_->add(read_update(context.getParams().getUpdate()));
    context.releaseParams();
    context.allowCancellation();
    return answer;
  }

 private:
  const std::shared_ptr<ClusterWatched> watched_;
};

}  // namespace fastserve
