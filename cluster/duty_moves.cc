// Where deployments answer, and how they leave a node that is drained.
#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "cluster/duty_board.h"

namespace fastserve {
namespace {

/// Whether somebody serves it: the node that has it, or the one that it leaves.
bool answers(const Duty& duty) {
  return duty.serving() ||
         (!duty.leaves.empty() && duty.before.state == DutyReport::State::kServing);
}

}  // namespace

/// It goes on where it is until `other` serves it.
void DutyBoard::leave(Entry& entry, const std::string& other) {
  Duty& duty = entry.duty;
  const std::string from = duty.node;
  const DutyReport before = duty.last;
  take(entry, fmt::format("node {} is being drained: it serves until node {} does", from, other));
  give(entry, other);
  duty.leaves = from;
  duty.before = before;
}

/// The node that a deployment leaves is done with it once the other serves, or when it is gone.
void DutyBoard::settle_move(Entry& entry, const std::vector<NodeStatus>& nodes) {
  Duty& duty = entry.duty;
  if (duty.leaves.empty()) return;
  using State = NodeStatus::State;
  const bool there = std::any_of(nodes.begin(), nodes.end(), [&](const NodeStatus& node) {
    return node.name == duty.leaves &&
           (node.state == State::kReady || node.state == State::kDraining);
  });
  const bool stays = duty.leaves == duty.node;  // it is not drained any more
  if (there && !duty.serving() && !stays) return;
  if (there && stays) {
    duty.last = duty.before;
    duty.state = Duty::State::kRunning;
  }
  duty.leaves.clear();
  duty.before = {};
}

Result<Duty> DutyBoard::serving(const std::string& model) const {
  const std::lock_guard lock(mutex_);
  const Duty* best = nullptr;
  std::set<std::string> others;
  for (const auto& [id, entry] : entries_) {
    const Duty& duty = entry.duty;
    if (duty.ended() || duty.kind != DutyKind::kDeploy) continue;
    const bool same = duty.model == model || duty.model.substr(0, duty.model.find('@')) == model;
    if (!same) {
      others.insert(duty.model);
      continue;
    }
    const auto rank = [](const Duty& d) { return std::tuple(answers(d), d.created_unix, d.id); };
    if (best == nullptr || rank(*best) < rank(duty)) best = &duty;
  }
  if (best == nullptr)
    return Error{ErrorCode::kNotFound, "is deployed nowhere in this cluster", model,
                 others.empty() ? fmt::format("fsctl deploy {} deploys it", model)
                                : fmt::format("fsctl deploy {} deploys it; deployed are: {}", model,
                                              fmt::join(others, ", "))};
  if (!answers(*best))
    return Error{ErrorCode::kUnavailable, "is deployed and does not answer yet: " + best->note,
                 best->model, "fsctl jobs follow " + best->id + " shows when it does"};
  Duty duty = *best;
  if (!duty.serving()) {  // the node that it leaves still has it
    duty.node = duty.leaves;
    duty.last = duty.before;
  }
  return duty;
}

}  // namespace fastserve
