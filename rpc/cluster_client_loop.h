// The thread of a ClusterClient: a connection, and calls over it that other threads wait for.
#pragma once

#include <capnp/rpc-twoparty.h>
#include <fmt/format.h>
#include <kj/async-io.h>

#include <atomic>
#include <future>
#include <list>
#include <memory>
#include <optional>
#include <thread>

#include "rpc/calling.h"
#include "rpc/cluster_client.h"
#include "rpc/cluster_stream.h"
#include "rpc/cluster_watched.h"
#include "rpc/event_loop.h"
#include "rpc/mailbox.h"

namespace fastserve {

/// Owns:    the connection and the thread.
/// Threads: any; what is passed to call() and post() runs on the loop's.
class ClusterClientLoop {
 public:
  ClusterClientLoop(std::unique_ptr<Stream> stream, ClusterClientOptions options);
  ~ClusterClientLoop() noexcept;
  ClusterClientLoop(const ClusterClientLoop&) = delete;
  ClusterClientLoop& operator=(const ClusterClientLoop&) = delete;

  /// What lives on the loop's thread.
  struct State final : kj::TaskSet::ErrorHandler {
    explicit State(kj::Own<kj::AsyncIoStream> connected)
        : stream(kj::mv(connected)),
          rpc(*stream),
          door(rpc.bootstrap().castAs<wire::Cluster>()),
          tasks(*this) {}
    void taskFailed(kj::Exception&&) override {}  // each call hands its failure to its caller

    kj::Own<kj::AsyncIoStream> stream;
    capnp::TwoPartyClient rpc;
    wire::Cluster::Client door;
    kj::Maybe<wire::Control::Client> control;  // set by open()
    std::list<std::shared_ptr<ClusterWatched>> watched;
    kj::TaskSet tasks;
  };

  /// How long an answer may take.
  enum class Patience : uint8_t {
    kShort,      ///< the timeout
    kWhileAlive  ///< as long as the coordinator answers pings
  };

  /// `send` makes the call on the loop's thread and reads its answer: kj::Promise<Result<T>>.
  /// `meanwhile` is called on this one now and then; it may be empty.
  template <class T, class Send>
  Result<T> call(Patience patience, Send send, const std::function<void()>& meanwhile = {}) {
    const auto answer = std::make_shared<Answer<T>>();
    post([answer, send = std::move(send), endpoint = endpoint_](State& state) {
      state.tasks.add(kj::evalNow([&]() { return send(state); })
                          .then([answer](Result<T> value) { answer->set(std::move(value)); },
                                [answer, endpoint](kj::Exception&& exception) {
                                  answer->set(failure(exception, endpoint));
                                }));
    });
    const Nanoseconds began = now();
    heard_ = began;
    while (true) {
      std::optional<Result<T>> value = answer->wait(kLookAtCancel);
      if (value) return std::move(*value);
      if (meanwhile) meanwhile();
      FS_TRY(keep_waiting(patience, began));
    }
  }

  void post(std::function<void(State& state)> task) {
    mailbox_.post([this, task = std::move(task)] { task(*state_); });
  }
  /// While waiting for the coordinator: an Error when that is to end.
  Status keep_waiting(Patience patience, Nanoseconds since);
  bool cancelled() const { return options_.cancel != nullptr && options_.cancel->raised(); }
  Nanoseconds timeout() const { return options_.timeout; }
  const std::string& endpoint() const { return endpoint_; }
  Error no_answer() const;
  static Error failure(const kj::Exception& exception, const std::string& endpoint);
  static Nanoseconds now() { return std::chrono::steady_clock::now().time_since_epoch(); }

  static constexpr Nanoseconds kLookAtCancel = std::chrono::milliseconds(20);

 private:
  void run(std::unique_ptr<Stream> stream, std::promise<void> started);

  const std::string endpoint_;
  const ClusterClientOptions options_;
  std::atomic<Nanoseconds> heard_{Nanoseconds{0}}, asked_{Nanoseconds{0}};  // of pings
  Mailbox mailbox_;
  State* state_ = nullptr;                      // the thread's, as is stop_
  kj::PromiseFulfiller<void>* stop_ = nullptr;  // both set before the constructor returns
  std::thread thread_;
};

}  // namespace fastserve
