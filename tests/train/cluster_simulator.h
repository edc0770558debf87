// A whole cluster at work on one job, in one thread and simulated time, with everything that can go
// wrong going wrong by a seed. The nodes' connections follow actors/cluster_node.cc and
// net/lane_hub, the job's incarnations actors/cluster_run.cc.
#pragma once

#include <filesystem>

#include "simulated_part.h"
#include "train/ledger_audit.h"

namespace fastserve::simulated {

/// Counts what happened, so that a test can tell that it did.
struct Covered {
  int crashes = 0, stops = 0, breaks = 0, coordinators = 0, joins = 0, jumps = 0, stragglers = 0;
  int promotions = 0, copies = 0, broken_off = 0;
  int64_t incarnations = 0, replayed = 0, repeated = 0, finished = 0, events = 0;
  int64_t older = 0, lost = 0;  // checkpoints taken though there was a newer; jobs without one
};

class Cluster {
 public:
  Cluster(uint64_t seed, const Common& common, Path ledger, bool told = false)
      : world_(seed), common_(common), ledger_path_(std::move(ledger)), told_(told) {
    disk_.weights = FakeBackend::initial_weights();
    disk_.m.assign(FakeBackend::kElements, 0);
    disk_.v.assign(FakeBackend::kElements, 0);
    faults_ = static_cast<int>(world_.rng.below(9));
    spacing_ = 30 + world_.rng.below(300);
    start_coordinator();
    const bool alone = common_.one_at_a_time;
    begin_with_ = (alone ? 2 : 1) + world_.rng.below(alone ? 3 : 4);
    for (size_t i = 0; i < begin_with_; i++) add_node(alone || i == 0);
  }
  ~Cluster() {
    for (const auto& made : made_)
      if (const LinkHandle link = made.lock()) link->abandon();
    std::error_code ignored;
    std::filesystem::remove(ledger_path_, ignored);
  }

  /// Empty when the job ended well; else what went wrong.
  std::string run() {
    constexpr int64_t kMostEvents = 200'000;
    while (!finished_) {
      if (++covered.events > kMostEvents)
        return "the job does not end: " +
               (coordinator_.conductor ? coordinator_.conductor->described() : "no incarnation");
      if (!world_.step()) return "nothing goes on";
      if (faults_ > 0 && world_.rng.below(spacing_) == 0) disturb();
      if (!trouble_.empty()) return trouble_;
      if (!world_.trouble.empty()) return world_.trouble;
    }
    return "";
  }

  const Saved& result() const { return *result_; }
  /// The only disks with some pieces are gone: the job has ended without a result.
  bool lost() const { return lost_; }
  Result<LedgerAudit> audited() {
    const std::string bytes = read_file(ledger_path_).value();
    return audit(std::as_bytes(std::span(bytes)), common_.spec, common_.spec.steps,
                 common_.sampler->windows(), "the ledger");
  }
  Covered covered;

 private:
  struct Coordinator {
    ProcessHandle process;
    uint32_t incarnations = 0;
    std::map<std::string, Known> table;
    std::map<std::string, LinkEnd> lanes;
    std::shared_ptr<Conductor> conductor;
    std::shared_ptr<LedgerFile> ledger;
    bool writing = false;
    std::shared_ptr<PieceCollector> pieces;
    Nanoseconds pieces_given_up{0};
    JobState wanted;  // the checkpoint whose pieces are collected
    std::weak_ptr<Conductor> wanted_by;
    std::optional<Nanoseconds> looking_since;  // for a checkpoint that can be had
  };
  struct Manifest {
    JobState state;
    PieceSet set;
  };

  void say(const std::string& line) const {
    if (told_)
      std::fprintf(stderr, "%10.3f ms  %s\n", static_cast<double>(world_.now().count()) / 1e6,
                   line.c_str());
  }

  // The coordinator's process.
  void start_coordinator();
  void look();
  void begin_incarnation(Saved from, std::vector<Known> nodes);
  void write(Saved saved);
  void look_at_pieces();
  void publish(const Result<PieceSet>& pieces);
  std::optional<Saved> restored();
  Saved assembled(const Manifest& manifest);
  void hello(const Known& known, const ProcessHandle& process);
  void adopt(const std::string& node, const LinkEnd& lane);

  // The nodes' processes.
  void add_node(bool everything);
  std::shared_ptr<Node> start_node(const std::string& name, int lanes, bool trains, bool serves);
  void connect(const std::shared_ptr<Node>& node);
  void keep_bulk_lane(const std::shared_ptr<Node>& node);
  bool dial(Node& from, const std::string& peer);

  // What goes wrong.
  void disturb();
  void crash(const std::shared_ptr<Node>& node);
  void crash_coordinator();
  void stop(const ProcessHandle& process);
  std::vector<std::shared_ptr<Node>> alive() const {
    std::vector<std::shared_ptr<Node>> nodes;
    for (const auto& node : nodes_)
      if (node->process->alive) nodes.push_back(node);
    return nodes;
  }
  LinkHandle link(const ProcessHandle& one, const ProcessHandle& other) {
    std::erase_if(links_, [](const auto& at) { return at.link->broken(); });
    links_.push_back({std::make_shared<Link>(world_, one, other), one, other});
    made_.push_back(links_.back().link);
    return links_.back().link;
  }
  void kill(const ProcessHandle& process) {
    process->alive = false;
    for (const auto& at : links_)
      if (at.one == process || at.other == process) at.link->break_off();
  }

  struct Between {
    LinkHandle link;
    ProcessHandle one, other;
  };
  World world_;
  const Common& common_;
  const Path ledger_path_;
  const bool told_;
  size_t synced_ = 0;                                   // of the ledger
  Saved disk_;                                          // the newest checkpoint
  std::vector<Manifest> manifests_;                     // the same in pieces: newest first
  std::map<std::string, std::shared_ptr<Disk>> disks_;  // of nodes
  int disks_lost_ = 0;
  bool lost_ = false;
  Coordinator coordinator_;
  uint64_t epoch_ = 0;
  std::vector<std::shared_ptr<Node>> nodes_;  // dead ones, too: events know them
  std::vector<Between> links_;
  std::vector<std::weak_ptr<Link>> made_;
  int names_ = 0, faults_ = 0;
  size_t begin_with_ = 1;  // nodes
  uint64_t spacing_ = 1;
  bool finished_ = false;
  std::string trouble_;
  std::optional<Saved> result_;
};

inline void Cluster::start_coordinator() {
  coordinator_ = {};
  coordinator_.process = std::make_shared<Process>(world_);
  coordinator_.process->clock.rate = 0.5 + world_.rng.uniform();
  epoch_++;
  auto ledger = LedgerFile::open(ledger_path_);
  if (!ledger.ok()) {
    trouble_ = ledger.error().message();
    return;
  }
  coordinator_.ledger = std::move(*ledger);
  coordinator_.pieces = std::make_shared<PieceCollector>("job", FakeBackend::kElements);
  world_.post(coordinator_.process, 10ms, [this] { look(); });
}

inline void Cluster::look() {
  if (coordinator_.pieces_given_up + 5s < world_.now()) {
    coordinator_.pieces_given_up = world_.now();
    coordinator_.pieces->give_up_lost();
    look_at_pieces();
  }
  world_.post(coordinator_.process, 50ms, [this] { look(); });
  std::vector<Known> usable;
  for (const auto& [name, known] : coordinator_.table) usable.push_back(known);
  auto& conductor = coordinator_.conductor;
  if (conductor == nullptr) {
    const auto any = [&](auto member) { return std::any_of(usable.begin(), usable.end(), member); };
    const bool all = !common_.one_at_a_time || usable.size() == begin_with_;
    if (all && !coordinator_.writing && any([](const Known& node) { return node.trains; }) &&
        any([](const Known& node) { return node.serves; }))
      if (auto from = restored()) begin_incarnation(std::move(*from), std::move(usable));
    return;
  }
  if (const auto& end = conductor->end()) {
    if (end->ok()) {
      finished_ = true;
      covered.finished++;
      result_ = conductor->last();
      result_->state = conductor->state();
    } else if (end->error().code != ErrorCode::kUnavailable) {
      trouble_ = end->error().message();
    }
    covered.broken_off += !end->ok() && conductor->at_work();
    say(end->ok() ? "the job has ended" : "the incarnation has ended");
    conductor->close();
    conductor = nullptr;
    return;
  }
  for (const Known& known : usable)
    if (!conductor->has(known.name)) conductor->joins(known);
}

inline void Cluster::begin_incarnation(Saved from, std::vector<Known> nodes) {
  Conductor::Around around;
  around.world = &world_;
  around.common = &common_;
  around.process = coordinator_.process;
  around.job = epoch_ << 32 | ++coordinator_.incarnations;
  around.from = std::move(from);
  around.nodes = std::move(nodes);
  around.ledger = coordinator_.ledger;
  around.write = [this](Saved saved) { write(std::move(saved)); };
  around.kept = [this](const PieceReport& report) {
    coordinator_.pieces->add(report);
    look_at_pieces();
  };
  around.left = [this](const std::string& node) { coordinator_.pieces->lost(node); };
  around.lane = [this](const std::string& node) {
    const auto it = coordinator_.lanes.find(node);
    return it == coordinator_.lanes.end() ? LinkEnd() : it->second;
  };
  around.promoted = [this] {
    say("other nodes lead shards now");
    covered.promotions++;
  };
  around.seeded = [this] { covered.copies++; };
  say("an incarnation begins from step " + std::to_string(around.from.state.steps_done) + " on " +
      std::to_string(around.nodes.size()) + " nodes");
  covered.incarnations++;
  coordinator_.conductor = std::make_shared<Conductor>(std::move(around));
  coordinator_.conductor->begin();
}

/// The checkpoint writer, which goes on when an incarnation has ended.
inline void Cluster::write(Saved saved) {
  if (common_.node_checkpoints) {
    coordinator_.wanted = saved.state;
    coordinator_.wanted_by = coordinator_.conductor;
    coordinator_.pieces->want(epoch_ << 32 | coordinator_.incarnations, saved.state.steps_done);
    return look_at_pieces();
  }
  coordinator_.writing = true;
  const std::weak_ptr<Conductor> from = coordinator_.conductor;
  world_.post(coordinator_.process, world_.delay(1ms, world_.chance(0.1) ? 3s : 100ms),
              [this, from, saved = std::move(saved)] {
                const Status synced = coordinator_.ledger->sync();
                if (!common_.broken.ledger_unsynced)
                  synced_ = std::filesystem::file_size(ledger_path_);
                coordinator_.writing = false;
                const bool full = world_.chance(0.05);
                if (!full && synced.ok()) disk_ = saved;
                say(full ? "a checkpoint is refused" : "a checkpoint is written");
                const auto conductor = from.lock();
                if (conductor == nullptr || conductor->closed()) return;
                conductor->written(
                    full ? Status(Error{ErrorCode::kResourceExhausted, "full", "", ""}) : synced);
              });
}

inline void Cluster::hello(const Known& known, const ProcessHandle& process) {
  const auto it = coordinator_.table.find(known.name);
  if (it != coordinator_.table.end()) {
    const auto other = it->second.node.lock();
    if (other && other->process != process) return known.control.link->break_off();
  }
  coordinator_.table[known.name] = known;
}

inline void Cluster::adopt(const std::string& node, const LinkEnd& lane) {
  const auto it = coordinator_.lanes.find(node);
  if (it != coordinator_.lanes.end()) {
    it->second.link->forget(it->second.end);
    say("a lane of " + node + " to the coordinator is replaced");
    // What was under way in it is lost, and nobody else would say so.
    if (coordinator_.conductor) coordinator_.conductor->lose(node);
  }
  coordinator_.lanes[node] = lane;
  lane.link->on_lost(lane.end, [this, node, lane] {
    const auto at = coordinator_.lanes.find(node);
    if (at == coordinator_.lanes.end() || !(at->second == lane)) return;
    coordinator_.lanes.erase(at);
    if (coordinator_.conductor) coordinator_.conductor->lose(node);
  });
}

inline void Cluster::add_node(bool everything) {
  const std::string name =
      std::string(1, static_cast<char>('a' + world_.rng.below(26))) + std::to_string(names_++);
  const bool serves = everything || world_.chance(0.5);
  const bool trains = everything || !serves || world_.chance(0.8);
  start_node(name, 1 + static_cast<int>(world_.rng.below(2)), trains, serves);
}

inline std::shared_ptr<Node> Cluster::start_node(const std::string& name, int lanes, bool trains,
                                                 bool serves) {
  const auto node = std::make_shared<Node>(world_, common_, name, lanes, trains, serves);
  node->dial = [this](Node& from, const std::string& peer) { return dial(from, peer); };
  auto& disk = disks_[name];
  if (disk == nullptr) disk = std::make_shared<Disk>();
  node->disk = disk;
  node->pace = 0.5 + 2 * world_.rng.uniform();
  node->process->clock.rate = 0.5 + world_.rng.uniform();
  nodes_.push_back(node);
  connect(node);
  keep_bulk_lane(node);
  return node;
}

/// Again and again, until it is connected.
inline void Cluster::connect(const std::shared_ptr<Node>& node) {
  const auto again = [this, node] {
    world_.post(node->process, world_.delay(50ms, 400ms), [this, node] { connect(node); });
  };
  if (!coordinator_.process->alive) return again();
  const LinkHandle control = link(node->process, coordinator_.process);
  node->control = LinkEnd{control, 0};
  control->on_lost(0, [this, node, again] {
    const LinkEnd gone = *node->control;
    node->control.reset();
    node->control_lost(gone);
    again();
  });
  const Known known{node, node->name, node->lanes, node->trains, node->serves, {control, 1}};
  control->on_lost(1, [this, known] {
    const auto it = coordinator_.table.find(known.name);
    if (it != coordinator_.table.end() && it->second.control == known.control)
      coordinator_.table.erase(it);
    if (coordinator_.conductor) coordinator_.conductor->control_lost(known.control);
  });
  control->open(0, [this, known, process = node->process] { hello(known, process); });
}

inline void Cluster::keep_bulk_lane(const std::shared_ptr<Node>& node) {
  world_.post(node->process, 50ms, [this, node] { keep_bulk_lane(node); });
  if (!node->control || node->connected(kCoordinator) || !coordinator_.process->alive) return;
  const LinkHandle lane = link(node->process, coordinator_.process);
  node->adopt(kCoordinator, {lane, 0}, {});
  lane->open(0, [this, name = node->name, lane] { adopt(name, {lane, 1}); });
}

inline bool Cluster::dial(Node& from, const std::string& peer) {
  for (const auto& node : alive()) {
    if (node->name != peer) continue;
    const auto me = std::find_if(nodes_.begin(), nodes_.end(),
                                 [&](const auto& at) { return at.get() == &from; });
    const LinkHandle lane = link(from.process, node->process);
    from.adopt(peer, {lane, 0}, node);
    lane->open(0, [node, lane, other = *me] { node->adopt(other->name, {lane, 1}, other); });
    return true;
  }
  return false;
}

}  // namespace fastserve::simulated

#include "simulated_faults.h"
#include "simulated_restore.h"
