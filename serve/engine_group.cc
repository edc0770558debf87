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
                         std::function<void(size_t)> ended, std::optional<Turns> turns)
    : engines_(std::move(engines)), ended_(std::move(ended)), turns_(std::move(turns)) {}

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
  if (turns_ && !loading()) begin_turn(now);
  bool another_loads = false;
  for (const auto& engine : engines_) {
    if (!engine->has_work() && !engine->loading()) continue;
    if (engine->loading() && another_loads) continue;
    if (stepped_ != engine.get()) settle();
    stepped_ = engine.get();
    std::vector<GenerateEvent> events = engine->step(now);
    another_loads = another_loads || engine->loading();
    for (GenerateEvent& event : events) deliver(std::move(event));
    if (turn_ && engine == engines_[turn_->came] && !engine->loading()) end_turn();
  }
}

/// Of the device, so that each engine hears of its own failures alone.
void EngineGroup::settle() {
  if (stepped_ != nullptr) std::exchange(stepped_, nullptr)->settle();
}

void EngineGroup::begin_turn(Nanoseconds now) {
  std::vector<ModelTurns::Use> uses;
  for (const auto& engine : engines_) uses.push_back({engine->answering(), engine->asked()});
  const ModelTurns::Plan plan = turns_->order.plan(uses, turns_->available, now);
  for (size_t i = 0; i < engines_.size(); ++i) engines_[i]->set_closed(plan.closed[i]);
  if (!plan.come) return;
  settle();
  turn_.emplace();
  turn_->came = *plan.come;
  turn_->left = plan.leave;
  for (const size_t i : plan.leave) engines_[i]->leave();
  turns_->told(*turn_);
  if (const Status came = engines_[turn_->came]->come(); !came.ok()) {
    turn_->failure = came.error();
    engines_[turn_->came]->abandon_all(came.error());
    end_turn();
  }
}

void EngineGroup::end_turn() {
  Engine& engine = *engines_[turn_->came];
  turn_->over = true;
  if (engine.load_failure()) {
    turn_->failure = engine.load_failure();
    engine.leave();
  }
  if (turn_->failure) turns_->order.gone(turn_->came);
  turns_->told(*turn_);
  turn_.reset();
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
