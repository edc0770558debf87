// The server actor: the thread of a device that answers requests. For actors/*.cc only: CAF shows
// here.
#pragma once

#include <caf/all.hpp>
#include <functional>
#include <memory>

#include "base/clock.h"
#include "serve/engine_group.h"

namespace fastserve::messages {

struct Submit {
  size_t engine;
  RequestId id;
  std::shared_ptr<GenerateRequest> request;  // checked
  GenerateService::Sink sink;
};
struct Cancel {
  RequestId id;
};
/// To itself: one step of every engine that has work, or weights to come.
struct Step {};
/// Leave when all requests are answered, or cancel them first. Nobody waits for weights to come.
struct Leave {
  bool cancel;
};

}  // namespace fastserve::messages

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Submit)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Cancel)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Step)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Leave)

namespace fastserve {

using ServerActor =
    caf::typed_actor<caf::reacts_to<messages::Submit>, caf::reacts_to<messages::Cancel>,
                     caf::reacts_to<messages::Step>, caf::reacts_to<messages::Leave>>;

struct ServerParts {
  std::shared_ptr<EngineGroup> engines;
  const Clock* clock;                               ///< outlives the actor
  std::function<void(const EngineHealth&)> report;  ///< after each change, on the actor's thread
  std::function<void(const std::string& failure)> ended;  ///< after the last event
};

/// Needs a thread of its own, since a step takes milliseconds. While there is work, or weights are
/// to come, it sends itself Step, which queues behind every message that came meanwhile; without
/// work it sleeps in its mailbox. When it ends, by Leave or by a failure, no request is left
/// without a last event.
ServerActor::behavior_type server(ServerActor::pointer self, const ServerParts& parts);

}  // namespace fastserve
