#include "cluster/duty_board.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "base/entropy.h"
#include "cluster/duty_records.h"

namespace fastserve {
namespace {

constexpr size_t kMostEvents = 200, kMostLive = 1000;

std::string fresh_id() {
  uint32_t word = 0;
  fill_with_entropy(std::as_writable_bytes(std::span(&word, 1)));
  return fmt::format("{:08x}", word);
}

const NodeStatus* find_node(const std::vector<NodeStatus>& nodes, const std::string& name) {
  for (const NodeStatus& node : nodes)
    if (node.name == name) return &node;
  return nullptr;
}

bool has_role(const NodeStatus& node, DutyKind kind) {
  return std::find(node.roles.begin(), node.roles.end(), duty_role(kind)) != node.roles.end();
}

/// Whether another node may succeed where one has failed so.
bool is_the_nodes_own(const Error& error) {
  return error.code == ErrorCode::kResourceExhausted || error.code == ErrorCode::kUnavailable ||
         error.code == ErrorCode::kIo;
}

std::string place_of(const DutyReport& report) {
  return report.port == 0 ? "" : fmt::format(" at {}:{}", report.host, report.port);
}

}  // namespace

Result<std::unique_ptr<DutyBoard>> DutyBoard::open(StateStore& state, const Clock& clock) {
  auto board = std::unique_ptr<DutyBoard>(new DutyBoard(state, clock));
  FS_ASSIGN(const auto records, state.list(kDutyPrefix));
  for (const auto& [key, text] : records) {
    const std::string id = key.substr(std::string_view(kDutyPrefix).size());
    FS_ASSIGN(DutyRecord record, decode_duty(id, text));
    // Whether it still runs there, the node will say.
    if (!record.duty.ended()) record.duty.state = Duty::State::kWaiting;
    board->entries_[id] = {
        std::move(record.duty), std::move(record.events), clock.now(), false, {}};
  }
  return board;
}

Status DutyBoard::keep(const Duty& duty, const std::vector<std::string>& events) {
  return state_.write({{kDutyPrefix + duty.id, encode_duty(duty, events)}});
}

void DutyBoard::say(Entry& entry, const std::string& what) {
  Duty& duty = entry.duty;
  if (duty.note == what) return;
  duty.note = what;
  entry.events.push_back(
      fmt::format("{:%Y-%m-%dT%H:%M:%SZ} {}", fmt::gmtime(clock_.unix_seconds()), what));
  if (entry.events.size() > kMostEvents) entry.events.erase(entry.events.begin());
  // A disk that is full now keeps what it kept: the next change is written with this one.
  [[maybe_unused]] const Status kept = keep(duty, entry.events);
}

void DutyBoard::forget_oldest() {
  std::vector<std::pair<int64_t, std::string>> ended;
  for (const auto& [id, entry] : entries_)
    if (entry.duty.ended()) ended.emplace_back(entry.duty.created_unix, id);
  if (ended.size() <= kMostEnded) return;
  std::sort(ended.begin(), ended.end());
  for (size_t i = 0; i < ended.size() - kMostEnded; i++) {
    if (!state_.write({{kDutyPrefix + ended[i].second, std::nullopt}}).ok()) return;
    entries_.erase(ended[i].second);
  }
}

Result<std::string> DutyBoard::add(DutyKind kind, const std::string& model, const Json& settings,
                                   const std::string& pinned) {
  const std::lock_guard lock(mutex_);
  forget_oldest();
  if (entries_.size() >= kMostLive)
    return Error{ErrorCode::kResourceExhausted, fmt::format("are {} already", entries_.size()),
                 "deployments and compressions", "end some: fsctl jobs cancel"};
  Entry entry;
  Duty& duty = entry.duty;
  do duty.id = fresh_id();
  while (entries_.contains(duty.id));
  duty.kind = kind;
  duty.model = model;
  duty.settings = settings;
  duty.pinned = pinned;
  duty.created_unix = clock_.unix_seconds();
  FS_TRY(keep(duty, {}));
  const std::string id = duty.id;
  entries_[id] = std::move(entry);
  return id;
}

Status DutyBoard::cancel(const std::string& id) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end()) return Error{ErrorCode::kNotFound, "no such job", id, ""};
  Duty& duty = found->second.duty;
  if (duty.ended())
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("is {} already", duty_state_name(duty.state)), "job " + id, ""};
  Duty ended = duty;
  ended.state = Duty::State::kCancelled;
  ended.node.clear();
  FS_TRY(keep(ended, found->second.events));
  duty = std::move(ended);
  duty.last = duty.before = {};
  duty.leaves.clear();
  say(found->second, "cancelled");
  return {};
}

Status DutyBoard::remove(const std::string& id) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end()) return Error{ErrorCode::kNotFound, "no such job", id, ""};
  if (!found->second.duty.ended())
    return Error{ErrorCode::kUnavailable,
                 fmt::format("is {}", duty_state_name(found->second.duty.state)), "job " + id,
                 "fsctl jobs cancel ends it"};
  FS_TRY(state_.write({{kDutyPrefix + id, std::nullopt}}));
  entries_.erase(found);
  return {};
}

Result<Duty> DutyBoard::find(const std::string& id) const {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end()) return Error{ErrorCode::kNotFound, "no such job", id, ""};
  return found->second.duty;
}

std::vector<Duty> DutyBoard::all() const {
  const std::lock_guard lock(mutex_);
  std::vector<Duty> duties;
  for (const auto& [id, entry] : entries_) duties.push_back(entry.duty);
  std::sort(duties.begin(), duties.end(), [](const Duty& a, const Duty& b) {
    return std::tie(a.created_unix, a.id) < std::tie(b.created_unix, b.id);
  });
  return duties;
}

Result<std::vector<std::string>> DutyBoard::events(const std::string& id) const {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end()) return Error{ErrorCode::kNotFound, "no such job", id, ""};
  return found->second.events;
}

std::set<std::string> DutyBoard::busy() const {
  const std::lock_guard lock(mutex_);
  std::set<std::string> nodes;
  for (const auto& [id, entry] : entries_) {
    if (entry.duty.ended()) continue;
    nodes.insert(entry.duty.node);
    if (!entry.duty.leaves.empty()) nodes.insert(entry.duty.leaves);
  }
  return nodes;
}

/// The least loaded node that is ready for it; empty: there is none.
std::string DutyBoard::choose(const Entry& entry, const std::vector<NodeStatus>& nodes) const {
  const Duty& duty = entry.duty;
  std::map<std::string, int> load;
  for (const auto& [id, other] : entries_)
    if (!other.duty.ended()) load[other.duty.node]++;
  const NodeStatus* best = nullptr;
  bool any = false;  // has the role, whatever its state
  for (const NodeStatus& node : nodes) {
    if (!has_role(node, duty.kind)) continue;
    any = any || node.state != NodeStatus::State::kGone;
    if (!duty.pinned.empty() && node.name != duty.pinned) continue;
    if (node.state != NodeStatus::State::kReady || entry.failed.contains(node.name)) continue;
    const auto better = [&] {
      return std::tuple(load[node.name], -node.lanes, node.name) <
             std::tuple(load[best->name], -best->lanes, best->name);
    };
    if (best == nullptr || better()) best = &node;
  }
  if (best != nullptr) return best->name;
  const bool own =
      duty.kind == DutyKind::kCompress && !any && !entry.failed.contains(kCoordinatorItself);
  return own ? kCoordinatorItself : "";
}

void DutyBoard::give(Entry& entry, const std::string& node) {
  entry.duty.node = node;
  entry.duty.state = Duty::State::kWaiting;
  entry.duty.last = {};
  entry.seen = clock_.now();
  entry.was_there = true;
  const bool itself = node == kCoordinatorItself;
  say(entry, itself ? "given to the coordinator itself: no node has the role compressor"
                    : "given to node " + node);
}

void DutyBoard::take(Entry& entry, const std::string& why) {
  entry.duty.node.clear();
  entry.duty.state = Duty::State::kWaiting;
  entry.duty.last = {};
  say(entry, why);
}

/// Of a node that is neither ready nor drained.
bool DutyBoard::is_given_up(const Entry& entry, const NodeStatus& node) const {
  const bool ended = node.state == NodeStatus::State::kGone && entry.was_there;
  const bool soon = ended && entry.duty.kind == DutyKind::kDeploy;
  return clock_.now() - entry.seen >= (soon ? kSoon : kPatience);
}

void DutyBoard::failed(Entry& entry, const Error& error) {
  entry.duty.leaves.clear();
  entry.duty.node.clear();
  entry.duty.state = Duty::State::kFailed;
  entry.duty.error = error;
  say(entry, error.message());
}

void DutyBoard::place(Entry& entry, const std::vector<NodeStatus>& nodes) {
  const Duty& duty = entry.duty;
  if (const std::string node = choose(entry, nodes); !node.empty()) return give(entry, node);
  // No node is left that has not failed at it, or still has it.
  if (duty.error && !entry.failed.empty() && duty.leaves.empty()) return failed(entry, *duty.error);
  say(entry, duty.pinned.empty()
                 ? fmt::format("waits for a node with the role {}", duty_role(duty.kind))
                 : fmt::format("waits for node {}", duty.pinned));
}

void DutyBoard::settle_one(Entry& entry, const std::vector<NodeStatus>& nodes) {
  Duty& duty = entry.duty;
  if (duty.node == kCoordinatorItself) return;
  settle_move(entry, nodes);
  if (duty.node.empty()) return place(entry, nodes);
  const std::string name = duty.node;
  const NodeStatus* node = find_node(nodes, name);
  if (node == nullptr) {
    take(entry, fmt::format("node {} was removed from the cluster", name));
    return place(entry, nodes);
  }
  if (node->state == NodeStatus::State::kReady) {
    entry.seen = clock_.now();
    entry.was_there = true;
    return;
  }
  if (node->state == NodeStatus::State::kDraining) {
    const std::string other = choose(entry, nodes);
    if (!other.empty() && duty.serving()) return leave(entry, other);
    take(entry, fmt::format("node {} is being drained{}", name,
                            other.empty() ? ": it ends there, until a node is ready for it" : ""));
    if (!other.empty()) give(entry, other);
    return;
  }
  duty.state = Duty::State::kWaiting;
  duty.last = {};
  if (!is_given_up(entry, *node)) return say(entry, fmt::format("node {} does not answer", name));
  const std::string other = choose(entry, nodes);
  if (other.empty()) return say(entry, fmt::format("waits for node {}, which is gone", name));
  duty.lost++;
  if (duty.kind == DutyKind::kCompress && duty.lost >= kMostLost)
    return failed(entry,
                  {ErrorCode::kUnavailable,
                   fmt::format("was lost with {} nodes, the last of which was {}", kMostLost, name),
                   "job " + duty.id, "see what ends them, then begin it anew"});
  take(entry, fmt::format("node {} was lost", name));
  give(entry, other);
}

void DutyBoard::settle(const std::vector<NodeStatus>& nodes) {
  const std::lock_guard lock(mutex_);
  for (auto& [id, entry] : entries_)
    if (!entry.duty.ended()) settle_one(entry, nodes);
}

std::vector<DutyOrder> DutyBoard::orders(const std::string& node) const {
  const std::lock_guard lock(mutex_);
  std::vector<DutyOrder> orders;
  for (const auto& [id, entry] : entries_) {
    const Duty& duty = entry.duty;
    const bool is_its = duty.node == node || duty.leaves == node;
    if (!duty.ended() && is_its && orders.size() < kMostDuties)
      orders.push_back({id, duty.kind, duty.model, duty.settings});
  }
  return orders;
}

void DutyBoard::report(const std::string& node, const std::vector<DutyReport>& reports) {
  const std::lock_guard lock(mutex_);
  using Said = DutyReport::State;
  for (const DutyReport& report : reports) {
    const auto found = entries_.find(report.id);
    if (found == entries_.end()) continue;
    Entry& entry = found->second;
    Duty& duty = entry.duty;
    if (!duty.ended() && duty.leaves == node && duty.node != node) duty.before = report;
    if (duty.ended() || duty.node != node) continue;
    duty.last = report;
    if (report.state == Said::kFailed) {
      const Error error = report.error.value_or(
          Error{ErrorCode::kInternal, "failed without saying why", "node " + node, ""});
      duty.error = error;
      const bool own = is_the_nodes_own(error) && duty.pinned.empty();
      if (!own) {
        failed(entry, error);
        continue;
      }
      entry.failed.insert(node);
      take(entry, fmt::format("node {} cannot: {}", node, error.message()));
    } else if (report.state == Said::kFinished && duty.kind == DutyKind::kDeploy) {
      take(entry, fmt::format("node {} has ended it", node));
    } else if (report.state == Said::kFinished) {
      duty.state = Duty::State::kFinished;
      duty.result = report.result;
      const auto model = report.result.string_or("model", duty.published);
      if (model.ok()) duty.published = *model;
      duty.error.reset();
      say(entry, fmt::format("{}, made by {}", duty.published, node));
    } else if (report.state != Said::kStarting) {
      duty.state = Duty::State::kRunning;
      if (report.state == Said::kServing)
        say(entry, fmt::format("serves on node {}{}", node, place_of(report)));
      else if (const std::string now = fmt::format("{} on node {}", report.stage, node);
               !duty.note.starts_with(now))
        say(entry, now);
    }
  }
}

Status DutyBoard::published(const std::string& id, const std::string& model) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end()) return Error{ErrorCode::kNotFound, "no such job", id, ""};
  found->second.duty.published = model;
  return keep(found->second.duty, found->second.events);
}

}  // namespace fastserve
