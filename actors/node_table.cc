#include "actors/node_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "base/entropy.h"

namespace fastserve {

using namespace wire_messages;

namespace {

std::string random_text() {
  uint64_t words[2];
  fill_with_entropy(std::as_writable_bytes(std::span(words)));
  return fmt::format("{:016x}{:016x}", words[0], words[1]);
}

bool has_role(const NodeHello& hello, const char* role) {
  return std::find(hello.roles.begin(), hello.roles.end(), role) != hello.roles.end();
}

}  // namespace

std::string NodeTable::issue_ticket(const NodeClaim& claim) {
  constexpr size_t kMostTickets = 4096;  // of connections that said no hello yet
  std::lock_guard lock(mutex_);
  if (tickets_.size() >= kMostTickets) tickets_.clear();
  std::string ticket = random_text();
  tickets_[ticket] = claim;
  return ticket;
}

Status NodeTable::hello(const NodeHello& hello, const NodeActor& actor) {
  std::lock_guard lock(mutex_);
  const std::string& name = hello.place.node;
  if (hello.protocol != kProtocol)
    return Error{ErrorCode::kUnsupported,
                 fmt::format("speaks protocol {} (fastserve {}), and this coordinator {}",
                             hello.protocol, hello.version, kProtocol),
                 "node " + name, "run the same release on the coordinator and its nodes"};
  const auto ticket = tickets_.find(hello.ticket);
  if (ticket == tickets_.end() || ticket->second.node != name)
    return Error{ErrorCode::kInvalidArgument, "is not the name in the node's certificate", name,
                 ""};
  NodeClaim claim = std::move(ticket->second);
  tickets_.erase(ticket);
  constexpr uint32_t kMostLanes = 4096;
  if (hello.lanes == 0 || hello.lanes > kMostLanes)
    return Error{ErrorCode::kInvalidArgument, fmt::format("has {} lanes", hello.lanes),
                 "node " + name, ""};
  Entry& entry = entries_[name];
  if (entry.actor && entry.hello.process != hello.process)
    return Error{ErrorCode::kAlreadyExists, "is connected already, from another process",
                 "node " + name, "stop the other one, or join under another name"};
  unfit_.forget(name);
  entry.hello = hello;
  entry.actor = actor;
  entry.claim = std::move(claim);
  NodeStatus& status = entry.status;
  status.name = name;
  status.address = fmt::format("{}:{}", hello.place.host, hello.place.port);
  status.roles = hello.roles;
  status.lanes = static_cast<int>(hello.lanes);
  status.version = hello.version;
  status.device = hello.device;
  status.numerics_id = hello.numerics;
  status.joined_unix = status.last_heard_unix = clock_.unix_seconds();
  status.clock_skew_seconds = static_cast<double>(hello.unix_seconds - clock_.unix_seconds());
  status.note.clear();
  entry.last_at = clock_.now();
  entry.last = {};
  return {};
}

Result<NodeClaim> NodeTable::claim_of(const Renew& renew) const {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(renew.node);
  if (it != entries_.end() && it->second.actor && it->second.hello.process == renew.process)
    return it->second.claim;
  return Error{ErrorCode::kInvalidArgument, "is not connected", "node " + renew.node, ""};
}

bool NodeTable::speaks_for(const std::string& node, uint64_t process) const {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(node);
  return it != entries_.end() && it->second.actor && it->second.hello.process == process;
}

void NodeTable::tick(const NodeTick& tick) {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(tick.node);
  if (it == entries_.end()) return;
  Entry& entry = it->second;
  const Nanoseconds now = clock_.now();
  const double took = std::chrono::duration<double>(now - entry.last_at).count();
  const uint64_t bytes = tick.bytes_sent + tick.bytes_received;
  const uint64_t before = entry.last.bytes_sent + entry.last.bytes_received;
  if (took > 0 && bytes >= before)
    entry.status.bytes_per_second = static_cast<double>(bytes - before) / took;
  entry.last = tick;
  entry.last_at = now;
  entry.status.last_heard_unix = clock_.unix_seconds();
  entry.status.clock_skew_seconds = static_cast<double>(tick.unix_seconds - clock_.unix_seconds());
}

std::optional<std::string> NodeTable::down(const caf::actor_addr& actor) {
  std::lock_guard lock(mutex_);
  for (auto& [name, entry] : entries_) {
    if (!entry.actor || entry.actor.address() != actor) continue;
    entry.actor = nullptr;
    entry.status.note = "the connection has ended";
    entry.status.bytes_per_second = 0;
    return name;
  }
  return std::nullopt;
}

void NodeTable::set_draining(const std::string& node, bool draining) {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(node);
  if (it != entries_.end())
    it->second.draining = draining;
  else if (draining)
    entries_[node].draining = true;  // for when it connects
}

NodeActor NodeTable::set_duties(const std::string& node, const std::string& orders) {
  std::lock_guard lock(mutex_);
  duties_[node] = orders;
  const auto it = entries_.find(node);
  return it == entries_.end() ? NodeActor() : it->second.actor;
}

std::string NodeTable::duties(const std::string& node) const {
  std::lock_guard lock(mutex_);
  const auto it = duties_.find(node);
  return it == duties_.end() ? "[]" : it->second;
}

void NodeTable::apart(const std::string& a, const std::string& b) {
  std::lock_guard lock(mutex_);
  unfit_.apart(a, b, clock_.now());
}

void NodeTable::failed(const std::string& node, const Error& why) {
  if (!UnfitNodes::of_its_own(why.code)) return;
  std::lock_guard lock(mutex_);
  unfit_.failed(node, why.message(), clock_.now());
}

std::map<std::string, std::string> NodeTable::left_out() const {
  std::vector<std::string> nodes;  // those without parameters first: they are missed least
  for (const bool serves : {false, true})
    for (const auto& [name, entry] : entries_)
      if (entry.actor && !entry.draining && has_role(entry.hello, "parameter-server") == serves)
        nodes.push_back(name);
  return unfit_.leave_out(nodes, clock_.now());
}

bool NodeTable::draining(const std::string& node) const {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(node);
  return it != entries_.end() && it->second.draining;
}

void NodeTable::watch(std::shared_ptr<MemberTable> members, const std::string& job,
                      const TrainPlan& plan) {
  std::lock_guard lock(mutex_);
  if (members == nullptr)
    jobs_.erase(job);
  else
    jobs_[job] = {std::move(members),
                  static_cast<double>(plan.tokens_per_step) / plan.microbatches};
}

NodeActor NodeTable::forget(const std::string& node) {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(node);
  if (it == entries_.end()) return NodeActor();
  NodeActor actor = std::move(it->second.actor);
  entries_.erase(it);
  return actor;
}

std::vector<NodeActor> NodeTable::connected() const {
  std::lock_guard lock(mutex_);
  std::vector<NodeActor> actors;
  for (const auto& [name, entry] : entries_)
    if (entry.actor) actors.push_back(entry.actor);
  return actors;
}

std::vector<std::pair<std::string, NodeActor>> NodeTable::connected_by_name() const {
  std::lock_guard lock(mutex_);
  std::vector<std::pair<std::string, NodeActor>> nodes;
  for (const auto& [name, entry] : entries_)
    if (entry.actor) nodes.emplace_back(name, entry.actor);
  return nodes;
}

std::vector<NodeStatus> NodeTable::all() const {
  constexpr auto kSilence = std::chrono::seconds(3);  // of a node that sends a tick each second
  constexpr double kClockForgiven = 30;               // s
  std::lock_guard lock(mutex_);
  std::vector<NodeStatus> nodes;
  const auto out = left_out();
  for (const auto& [name, entry] : entries_) {
    if (entry.status.name.empty()) continue;  // it has not connected yet
    NodeStatus status = entry.status;
    using State = NodeStatus::State;
    status.state = !entry.actor                              ? State::kGone
                   : clock_.now() - entry.last_at > kSilence ? State::kSilent
                   : entry.draining                          ? State::kDraining
                                                             : State::kReady;
    if (std::abs(status.clock_skew_seconds) > kClockForgiven && entry.actor)
      status.note = fmt::format("its clock is {:.0f} s {} the coordinator's",
                                std::abs(status.clock_skew_seconds),
                                status.clock_skew_seconds > 0 ? "ahead of" : "behind");
    if (const auto why = out.find(name); why != out.end())
      status.note = "not used for now: " + why->second;
    for (const auto& [job, watched] : jobs_) {
      const auto members = watched.members->all();
      const auto member = members.find(name);
      if (member == members.end()) continue;
      status.job = job;
      status.share = member->second.share;
      status.tokens_per_second +=
          member->second.microbatches_per_second * watched.tokens_per_microbatch;
    }
    nodes.push_back(std::move(status));
  }
  return nodes;
}

std::vector<JobNode> NodeTable::usable(const std::string& numerics) const {
  std::lock_guard lock(mutex_);
  std::vector<JobNode> nodes = usable_but(left_out(), numerics);
  const auto any = [&](auto member) { return std::any_of(nodes.begin(), nodes.end(), member); };
  if (any([](const JobNode& node) { return node.trains; }) &&
      any([](const JobNode& node) { return node.serves; }))
    return nodes;
  return usable_but({}, numerics);
}

std::vector<JobNode> NodeTable::usable_but(const std::map<std::string, std::string>& out,
                                           const std::string& numerics) const {
  const auto free = [&](const Entry& entry) {
    return entry.actor && !entry.draining && !out.contains(entry.hello.place.node);
  };
  std::map<std::string, int> lanes;
  for (const auto& [name, entry] : entries_)
    if (free(entry)) lanes[entry.hello.numerics] += static_cast<int>(entry.hello.lanes);
  if (lanes.empty()) return {};
  // A GPU's node is worth more than the lanes of the CPU beside it.
  const auto worth = [](const auto& kind) {
    return std::pair(kind.first.starts_with("gpu/"), kind.second);
  };
  const auto most = std::max_element(lanes.begin(), lanes.end(), [&](const auto& a, const auto& b) {
    return worth(a) < worth(b);
  });
  const std::string& kind = lanes.contains(numerics) ? numerics : most->first;
  std::vector<JobNode> nodes;
  for (const auto& [name, entry] : entries_) {
    if (!free(entry) || entry.hello.numerics != kind) continue;
    const bool trains = has_role(entry.hello, "trainer");
    const bool serves = has_role(entry.hello, "parameter-server");
    if (trains || serves)
      nodes.push_back({name, entry.actor, entry.hello.place, static_cast<int>(entry.hello.lanes),
                       trains, serves});
  }
  return nodes;
}

std::optional<NodeHello> NodeTable::find(const std::string& node) const {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(node);
  if (it == entries_.end() || !it->second.actor) return std::nullopt;
  return it->second.hello;
}

}  // namespace fastserve
