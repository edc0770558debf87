#include "rpc/cluster_client_loop.h"

namespace fastserve {
ClusterClientLoop::ClusterClientLoop(std::unique_ptr<Stream> stream, ClusterClientOptions options)
    : endpoint_(stream->peer()), options_(options) {
  std::promise<void> started;
  const std::future<void> ready = started.get_future();
  thread_ = std::thread([this, stream = std::move(stream), started = std::move(started)]() mutable {
    run(std::move(stream), std::move(started));
  });
  ready.wait();
}

ClusterClientLoop::~ClusterClientLoop() noexcept {
  mailbox_.post([this] { stop_->fulfill(); });
  thread_.join();
}

void ClusterClientLoop::run(std::unique_ptr<Stream> stream, std::promise<void> started) {
  const SilentLog silent;
  auto io = set_up_event_loop();
  auto stop = kj::newPromiseAndFulfiller<void>();
  {
    State state(kj::heap<ClusterStream>(std::move(stream), io.unixEventPort));
    state_ = &state;
    stop_ = stop.fulfiller.get();
    started.set_value();
    const auto lost = [this, &state]() {
      for (const auto& watched : state.watched)
        watched->fail(failure(KJ_EXCEPTION(DISCONNECTED, "lost"), endpoint_));
    };
    state.tasks.add(
        state.rpc.onDisconnect().then([lost]() { lost(); }, [lost](kj::Exception&&) { lost(); }));
    state.tasks.add(mailbox_.run(io.unixEventPort));
    stop.promise.wait(io.waitScope);
  }
  mailbox_.close();
}

Error ClusterClientLoop::no_answer() const {
  const double seconds = std::chrono::duration<double>(options_.timeout).count();
  return {ErrorCode::kDeadlineExceeded, fmt::format("gave no answer within {:.3g} s", seconds),
          endpoint_,
          "see whether the coordinator still runs, and whether the network lets you through"};
}

Error ClusterClientLoop::failure(const kj::Exception& exception, const std::string& endpoint) {
  Error error = from_exception(exception, endpoint);
  if (error.code == ErrorCode::kUnavailable) error.hint = "see whether the coordinator still runs";
  if (error.code == ErrorCode::kUnsupported) {
    error.what = "the coordinator lacks this call";
    error.hint = "update the coordinator to this client's version";
  }
  return error;
}

Status ClusterClientLoop::keep_waiting(Patience patience, Nanoseconds since) {
  if (cancelled())
    return Error{ErrorCode::kCancelled, "stopped waiting for the answer", endpoint_,
                 "what was asked for may happen nevertheless"};
  const Nanoseconds at = now();
  if (patience == Patience::kShort) return at - since < options_.timeout ? Status() : no_answer();
  if (at - heard_.load() >= options_.timeout) return no_answer();
  if (at - asked_.load() >= options_.timeout / 3) {
    asked_ = at;
    post([this](State& state) {
      KJ_IF_MAYBE (control, state.control) {
        state.tasks.add(control->pingRequest().send().then([this](auto&&) { heard_ = now(); }));
      }
    });
  }
  return {};
}

}  // namespace fastserve
