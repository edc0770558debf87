#include "actors/server.h"

#include <exception>
#include <string>
#include <utility>

namespace fastserve {
namespace {

struct ServerState {
  bool stepping = false;  ///< a Step is in the mailbox
  bool leaving = false;
  std::string failure;  ///< why it ended, when not by Leave
};

std::string text_of(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "unknown exception";
  }
}

}  // namespace

ServerActor::behavior_type server(ServerActor::pointer self, const ServerParts& parts) {
  const std::shared_ptr<EngineGroup> engines = parts.engines;
  const Clock* const clock = parts.clock;
  auto state = std::make_shared<ServerState>();
  self->set_exception_handler([state](std::exception_ptr& failure) -> caf::error {
    state->failure = text_of(failure);
    return caf::sec::runtime_error;
  });
  self->attach_functor([engines, state, ended = parts.ended] {
    const std::string why = state->failure.empty() ? "" : ": " + state->failure;
    engines->abandon({ErrorCode::kUnavailable, "the server stopped" + why, "", "try again later"});
    ended(state->failure);
  });
  const auto go_on = [self, engines, state, report = parts.report] {
    report(engines->health());
    if (state->leaving && !engines->has_work()) {
      self->quit();
    } else if ((engines->has_work() || engines->loading()) && !state->stepping) {
      state->stepping = true;
      self->send(self, messages::Step{});
    }
  };
  go_on();  // weights may be to come
  return {
      [=](messages::Submit& m) {
        engines->submit(m.engine, m.id, std::move(*m.request), std::move(m.sink), clock->now());
        go_on();
      },
      [=](const messages::Cancel& m) {
        engines->cancel(m.id);
        go_on();
      },
      [=](const messages::Step&) {
        state->stepping = false;
        engines->step(clock->now());
        go_on();
      },
      [=](const messages::Leave& m) {
        state->leaving = true;
        if (m.cancel) engines->cancel_all();
        go_on();
      },
  };
}

}  // namespace fastserve
