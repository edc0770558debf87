// How far a call of a client is that takes long: told by the server to the client's ProgressSink.
#pragma once

#include <atomic>
#include <memory>

#include "rpc/cluster_loop.h"

namespace fastserve {

/// Threads: any.
struct Progress {
  std::atomic<double> fraction{0};
};

/// Tells `sink` whenever it has changed, one word at a time, until the promise is dropped: it is
/// never kept. A sink that is not there, or fails, is told nothing.
inline kj::Promise<void> tell_progress(ClusterLoop& loop, std::shared_ptr<Progress> progress,
                                       bool wanted, wire::ProgressSink::Client sink,
                                       double said = 0) {
  if (!wanted) return kj::NEVER_DONE;
  return loop.timer()
      .afterDelay(200 * kj::MILLISECONDS)
      .then([&loop, progress = std::move(progress), sink = kj::mv(sink),
             said]() mutable -> kj::Promise<void> {
        const double now = progress->fraction;
        if (now == said) return tell_progress(loop, std::move(progress), true, kj::mv(sink), said);
        auto push = sink.pushRequest();
        push.setFraction(now);
        return push.send().then(
            [&loop, progress = std::move(progress), sink = kj::mv(sink), now](auto&&) mutable {
              return tell_progress(loop, std::move(progress), true, kj::mv(sink), now);
            },
            [](kj::Exception&&) -> kj::Promise<void> { return kj::NEVER_DONE; });
      });
}

/// A client's end of it.
class ProgressSinkServer final : public wire::ProgressSink::Server {
 public:
  explicit ProgressSinkServer(std::shared_ptr<Progress> progress)
      : progress_(std::move(progress)) {}
  kj::Promise<void> push(PushContext context) override {
    progress_->fraction = context.getParams().getFraction();
    return kj::READY_NOW;
  }

 private:
  const std::shared_ptr<Progress> progress_;
};

}  // namespace fastserve
