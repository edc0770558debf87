// One request's events on their way to its client.
#pragma once

#include <kj/async.h>

#include <deque>
#include <functional>

#include "rpc/messages.h"

namespace fastserve {

/// Sends events to a client's sink: one message an engine step while the client keeps up, larger
/// and fewer ones when it does not.
///
/// Owns:     the events that the client has no credit for, merged into ones of 256 KiB.
/// Threads:  the loop's.
/// Promises: at most kCredit messages are unanswered; nothing is lost or reordered. `on_end` is
///           called once: when the last event was answered, or the client took no more.
class RequestStream final : private kj::TaskSet::ErrorHandler {
 public:
  static constexpr int kCredit = 16;

  RequestStream(wire::EventSink::Client sink, std::function<void()> on_end)
      : sink_(kj::mv(sink)), on_end_(std::move(on_end)), calls_(*this) {}

  void add(GenerateEvent event);
  /// Sends what was added if the client has credit; otherwise once it has.
  void send();
  /// The last event was added.
  bool finished() const { return finished_; }
  /// The client has events that it did not answer.
  bool unanswered() const { return unanswered_ > 0; }

 private:
  void taskFailed(kj::Exception&& exception) override;
  void end();

  wire::EventSink::Client sink_;
  std::function<void()> on_end_;  // empty once called
  struct Merged {
    GenerateEvent event;
    uint64_t words;
  };
  std::deque<Merged> waiting_;
  bool finished_ = false;
  int unanswered_ = 0;
  kj::TaskSet calls_;
};

}  // namespace fastserve
