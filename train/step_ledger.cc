#include "train/step_ledger.h"

#include <algorithm>

#include "base/check.h"

namespace fastserve {

StepLedger::StepLedger(uint32_t units) : units_(units), left_(units) {
  for (uint32_t i = 0; i < units; i++) open_.push_back(i);
}

StepLedger::StepLedger(std::vector<TrainerId> owners)
    : StepLedger(static_cast<uint32_t>(owners.size())) {
  owners_ = std::move(owners);
}

void StepLedger::join(TrainerId trainer) { queues_.try_emplace(trainer); }

void StepLedger::lose(TrainerId trainer, bool results_too) {
  const auto it = queues_.find(trainer);
  if (it == queues_.end()) return;
  const std::deque<uint32_t> units = std::move(it->second);
  queues_.erase(it);
  dry_.clear();  // what was its own is anybody's
  for (auto unit = units.rbegin(); unit != units.rend(); ++unit) {
    if (units_[*unit].state != Unit::kOut) continue;
    // Whoever has it queued as well may have passed it by: the lost one may hold the claim.
    for (auto& [other, queue] : queues_) std::erase(queue, *unit);
    units_[*unit] = {};
    open_.push_front(*unit);
  }
  for (uint32_t i = 0; results_too && i < units_.size(); i++) {
    if (units_[i].state != Unit::kDone || units_[i].by != trainer) continue;
    units_[i] = {};
    open_.push_back(i);
    left_++;
  }
}

bool StepLedger::complete(TrainerId trainer, uint32_t unit) {
  FS_CHECK(unit < units_.size());
  for (auto& [other, queue] : queues_) std::erase(queue, unit);
  if (units_[unit].state == Unit::kDone) {
    repeated_++;
    return false;
  }
  std::erase(open_, unit);
  units_[unit].state = Unit::kDone;
  units_[unit].by = trainer;
  left_--;
  return true;
}

Handout StepLedger::give(TrainerId trainer, uint32_t unit, Nanoseconds now) {
  Unit& entry = units_[unit];
  if (entry.state == Unit::kOpen) {
    entry.state = Unit::kOut;
    entry.claim = std::make_shared<std::atomic<bool>>(false);
    entry.since = now;
  }
  queues_[trainer].push_back(unit);
  return {trainer, unit, entry.claim};
}

bool StepLedger::steal_for(TrainerId trainer, Nanoseconds now, std::vector<Handout>& out) {
  for (auto& [other, queue] : queues_) {
    if (other == trainer || queue.size() < 2 || queue.back() == queue.front()) continue;
    out.push_back(give(trainer, queue.back(), now));
    return true;
  }
  return false;
}

std::optional<uint32_t> StepLedger::take_open(TrainerId trainer) {
  if (dry_.contains(trainer)) return std::nullopt;
  const auto allowed = [&](uint32_t unit) {
    // What was given out once, and is open again, is anybody's.
    return owners_.empty() || owners_[unit] == trainer || units_[unit].reopened ||
           !queues_.contains(owners_[unit]);
  };
  const auto it = std::find_if(open_.begin(), open_.end(), allowed);
  if (it == open_.end()) {
    dry_.insert(trainer);
    return std::nullopt;
  }
  const uint32_t unit = *it;
  open_.erase(it);
  return unit;
}

std::vector<Handout> StepLedger::hand_out(Nanoseconds now) {
  std::vector<Handout> out;
  for (size_t depth = 0; depth < 2; depth++)
    for (auto& [trainer, queue] : queues_) {
      if (queue.size() != depth) continue;
      if (const auto unit = take_open(trainer))
        out.push_back(give(trainer, *unit, now));
      else if (depth == 0 && owners_.empty())
        steal_for(trainer, now, out);
    }
  return out;
}

void StepLedger::reopen_overdue(Nanoseconds now, Nanoseconds limit) {
  const bool somebody_idle = std::any_of(queues_.begin(), queues_.end(),
                                         [](const auto& entry) { return entry.second.empty(); });
  if (!somebody_idle) return;
  for (uint32_t i = 0; i < units_.size(); i++) {
    if (units_[i].state != Unit::kOut || now - units_[i].since < limit) continue;
    units_[i].state = Unit::kOpen;  // the straggler keeps its copy; the first result counts
    units_[i].reopened = true;
    open_.push_back(i);
    dry_.clear();
    if (owners_.empty()) continue;
    for (uint32_t other = 0; other < units_.size(); other++)  // nor will it come to the others soon
      if (owners_[other] == owners_[i]) units_[other].reopened = true;
  }
}

}  // namespace fastserve
