#include "serve/model_turns.h"

#include <algorithm>

#include "base/check.h"

namespace fastserve {
namespace {

bool idle(const ModelTurns::Use& use) { return !use.answering && !use.asked; }

}  // namespace

ModelTurns::ModelTurns(std::vector<Need> needs, uint64_t budget, Nanoseconds turn)
    : budget_(budget), turn_(turn) {
  for (const Need& need : needs) {
    FS_CHECK(need.total() <= budget);
    models_.emplace_back().need = need;
  }
}

uint64_t ModelTurns::held() const {
  uint64_t sum = 0;
  for (const Model& m : models_)
    if (m.here) sum += m.need.held;
  return sum;
}

std::vector<size_t> ModelTurns::begin() {
  std::vector<size_t> first;
  for (size_t i = 0; i < models_.size(); ++i) {
    if (held() + models_[i].need.total() > budget_) continue;
    models_[i].here = true;
    first.push_back(i);
  }
  return first;
}

void ModelTurns::note(std::span<const Use> uses, Nanoseconds now) {
  for (size_t i = 0; i < models_.size(); ++i) {
    Model& m = models_[i];
    if (m.here && !m.arrived) m.since = m.used = now;
    if (m.here && !idle(uses[i])) m.used = now;
    m.arrived = m.here;
    const bool waits = !m.here && uses[i].asked;
    if (waits && m.waits_since == 0) m.waits_since = ++waits_;
    if (!waits) m.waits_since = 0;
  }
}

std::optional<size_t> ModelTurns::first_waiting() const {
  std::optional<size_t> first;
  for (size_t i = 0; i < models_.size(); ++i) {
    const int64_t since = models_[i].waits_since;
    if (since > 0 && (!first || since < models_[*first].waits_since)) first = i;
  }
  return first;
}

std::vector<size_t> ModelTurns::order_of_leaving(std::span<const Use> uses) const {
  std::vector<size_t> order;
  for (size_t i = 0; i < models_.size(); ++i)
    if (models_[i].here) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (idle(uses[a]) != idle(uses[b])) return idle(uses[a]);
    return idle(uses[a]) ? models_[a].used < models_[b].used : models_[a].since < models_[b].since;
  });
  return order;
}

ModelTurns::Plan ModelTurns::plan(std::span<const Use> uses,
                                  const std::function<uint64_t()>& available, Nanoseconds now) {
  FS_CHECK(uses.size() == models_.size());
  note(uses, now);
  Plan plan;
  plan.closed.resize(models_.size());
  const auto next = first_waiting();
  if (!next) return plan;
  const uint64_t need = models_[*next].need.total();
  uint64_t have = budget_ - held();
  bool room = true;
  const std::vector<size_t> order = order_of_leaving(uses);
  auto at = order.begin();
  for (; have < need; ++at) {  // each fits by itself: the last has not been passed
    plan.leave.push_back(*at);
    have += models_[*at].need.held;
    if (idle(uses[*at])) continue;
    plan.closed[*at] = now - models_[*at].since > turn_;
    room = room && plan.closed[*at] && !uses[*at].answering;
  }
  if (!room) {
    plan.leave.clear();
    return plan;
  }
  have = available();
  for (const size_t i : plan.leave) have += models_[i].need.held;
  for (; at != order.end() && idle(uses[*at]) && have < need; ++at) {
    plan.leave.push_back(*at);
    have += models_[*at].need.held;
  }
  plan.come = next;
  plan.closed.assign(models_.size(), false);
  for (const size_t i : plan.leave) models_[i].here = false;
  models_[*next].here = true;
  models_[*next].arrived = false;
  models_[*next].waits_since = 0;
  return plan;
}

}  // namespace fastserve
