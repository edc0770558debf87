// Several models behind one device: whose turn it is, and who hears of it.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "serve/engine.h"
#include "serve/model_turns.h"
#include "serve/service.h"

namespace fastserve {

/// The engines of one device thread, and the sinks of their requests.
///
/// Each step() gives every engine that has work one step, so that a busy model cannot shut out
/// another. Models that are still being loaded are so one after another, in their order; requests
/// for those that come later wait.
///
/// With turns, engines that have no decoder get one when they are asked, and others give theirs up
/// for it. One that cannot have it ends the requests that wait for it, and nothing else: the next
/// request tries again.
///
/// Owns:     the engines and the sinks; a sink is dropped with its request's last event.
/// Threads:  one caller; but engine(i).check() may come from any thread.
/// Promises: each submitted request ends with exactly one last event in its sink.
class EngineGroup {
 public:
  using Sink = GenerateService::Sink;

  /// Who takes whose place.
  struct Turn {
    size_t came = 0;
    std::vector<size_t> left;      ///< for it
    bool over = false;             ///< its weights are there, or they will not come; else it begins
    std::optional<Error> failure;  ///< why not; kCancelled when it was stopped
  };
  struct Turns {
    ModelTurns order;
    std::function<uint64_t()> available;    ///< bytes that the device can still give
    std::function<void(const Turn&)> told;  ///< when a turn begins and when it is over
  };

  /// `ended` is called after each request's last event; may be empty. With `turns`, every engine
  /// has a DecoderMaker.
  EngineGroup(std::vector<std::unique_ptr<Engine>> engines,
              std::function<void(size_t engine)> ended = {}, std::optional<Turns> turns = {});

  size_t size() const { return engines_.size(); }
  const Engine& engine(size_t i) const { return *engines_[i]; }

  /// Queues what engine(i).check() returned. A full queue is an event with an error, too.
  void submit(size_t engine, RequestId id, GenerateRequest checked, Sink sink, Nanoseconds now);
  void cancel(RequestId id);
  void cancel_all();
  bool has_work() const;
  /// Weights are still to come: steps are needed though there be no request.
  bool loading() const;
  /// Why the first model that could not be loaded could not.
  std::optional<Error> load_failure() const;
  void step(Nanoseconds now);
  /// Ends every request with `error`, without the engines' help.
  void abandon(const Error& error);

  EngineHealth health() const;  ///< of all engines together

 private:
  struct Listener {
    size_t engine;
    Sink sink;
  };
  void begin_turn(Nanoseconds now);
  void end_turn();
  void settle();
  void deliver(GenerateEvent event);

  std::vector<std::unique_ptr<Engine>> engines_;
  std::function<void(size_t)> ended_;
  std::optional<Turns> turns_;
  std::optional<Turn> turn_;   ///< that is not over
  Engine* stepped_ = nullptr;  ///< the last that did, and may have left the device at work
  std::unordered_map<RequestId, Listener> listeners_;
};

}  // namespace fastserve
