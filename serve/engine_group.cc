#include "serve/engine_group.h"

#include <algorithm>
#include <utility>

namespace fastserve {
namespace {

GenerateEvent failure(RequestId id, Error error) {
  GenerateEvent event;
  event.request = id;
  event.finish = FinishReason::kError;
  event.error = std::move(error);
  return event;
}

}  // namespace

EngineGroup::EngineGroup(std::vector<std::unique_ptr<Engine>> engines,
                         std::function<void(size_t)> ended)
    : engines_(std::move(engines)), ended_(std::move(ended)) {}

void EngineGroup::submit(size_t engine, RequestId id, GenerateRequest checked, Sink sink,
                         Nanoseconds now) {
  FS_CHECK(engine < engines_.size());
  FS_CHECK(listeners_.emplace(id, Listener{engine, std::move(sink)}).second);
  Status queued = engines_[engine]->submit(id, std::move(checked), now);
  if (!queued.ok()) deliver(failure(id, std::move(queued).error()));
}

void EngineGroup::cancel(RequestId id) {
  const auto it = listeners_.find(id);
  if (it != listeners_.end()) engines_[it->second.engine]->cancel(id);
}

void EngineGroup::cancel_all() {
  for (const auto& engine : engines_) engine->cancel_all();
}

bool EngineGroup::has_work() const {
  return std::any_of(engines_.begin(), engines_.end(), [](const auto& e) { return e->has_work(); });
}

bool EngineGroup::loading() const {
  return std::any_of(engines_.begin(), engines_.end(), [](const auto& e) { return e->loading(); });
}

std::optional<Error> EngineGroup::load_failure() const {
  for (const auto& engine : engines_)
    if (engine->load_failure()) return engine->load_failure();
  return std::nullopt;
}

void EngineGroup::step(Nanoseconds now) {
  for (const auto& engine : engines_) {
    if (!engine->has_work() && !engine->loading()) continue;
    std::vector<GenerateEvent> events = engine->step(now);
    const bool loads = engine->loading();
    if (loads && engines_.size() > 1) engine->settle();
    for (GenerateEvent& event : events) deliver(std::move(event));
    if (loads) break;
  }
}

void EngineGroup::abandon(const Error& error) {
  std::vector<RequestId> ids;
  for (const auto& [id, listener] : listeners_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  for (RequestId id : ids) deliver(failure(id, error));
}

void EngineGroup::deliver(GenerateEvent event) {
  const auto it = listeners_.find(event.request);
  FS_CHECK(it != listeners_.end());
  std::vector<GenerateEvent> events;
  if (event.finish == FinishReason::kNone) {
    events.push_back(std::move(event));
    it->second.sink(std::move(events));
    return;
  }
  const Listener last = std::move(it->second);
  listeners_.erase(it);
  events.push_back(std::move(event));
  last.sink(std::move(events));
  if (ended_) ended_(last.engine);
}

EngineHealth EngineGroup::health() const {
  EngineHealth sum;
  for (const auto& engine : engines_) {
    const EngineHealth h = engine->health();
    sum.running += h.running;
    sum.queued += h.queued;
    sum.kv_blocks_free += h.kv_blocks_free;
    sum.kv_blocks += h.kv_blocks;
    sum.tokens_generated += h.tokens_generated;
    sum.requests_finished += h.requests_finished;
    sum.preemptions += h.preemptions;
    sum.prompt_tokens_shared += h.prompt_tokens_shared;
    sum.tokens_parked += h.tokens_parked;
  }
  return sum;
}

}  // namespace fastserve
