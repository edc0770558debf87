#include "actors/conductor.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "actors/conductor_sink.h"
#include "actors/first_tensors.h"
#include "actors/job_copies.h"
#include "actors/shard_places.h"

namespace fastserve {

using namespace messages;
using namespace wire_messages;

namespace {

constexpr auto kTick = std::chrono::milliseconds(200), kSoon = std::chrono::milliseconds(20);
constexpr auto kOpening = std::chrono::minutes(2);  // data, weights and all

class Conductor {
 public:
  Conductor(ConductorShell::pointer self, std::shared_ptr<ConductorParts> parts)
      : self_(self), parts_(std::move(parts)) {}

  void begin() {
    began_ = parts_->clock->now();
    const ParameterLayout layout(parts_->spec.model);
    const auto tiles = TrainWeights::tiles_of(parts_->spec.model, layout);
    owners_ = place_shards(parts_->nodes, tiles.size(),
                           count_stripes(parts_->spec, layout.elements(), parts_->nodes));
    ranges_ = ParameterShard::ranges(tiles, layout.elements(), static_cast<int>(owners_.size()));
    owners_.resize(ranges_.size());
    if (parts_->collector) place_pieces();
    const int replicas = parts_->spec.replicas;
    held_ = std::make_unique<JobCopies>(
        JobCopies::Around{self_, [this](const std::string& node) { return part_of(node); },
                          [this] { return able(); }, [this] { tell_holders(); }},
        place_copies(owners_, serving_nodes(parts_->nodes), replicas),
        StepId{static_cast<uint64_t>(parts_->state.steps_done)}, replicas);
    *parts_->copies = held_->fewest();
    sink_ = std::make_shared<ConductorSink>(ConductorShell(self_), owners_, ranges_, replicas > 0);
    parts_->hub->open(parts_->job, sink_);
    for (const JobNode& node : parts_->nodes) order(node, false);
    self_->delayed_send(self_, kTick, Tick{});
  }

  void close() {
    if (sink_ != nullptr) parts_->hub->close(parts_->job, *sink_);
    for (auto& [name, member] : members_)
      if (member.part) caf::anon_send(member.part, EndPart{});
    for (const auto& actor : own_) caf::anon_send_exit(actor, caf::exit_reason::kill);
    own_.clear();
    members_.clear();
    held_ = nullptr;
    coordinator_ = nullptr;
    parts_->completion->set(Error{ErrorCode::kCancelled, "the job was taken down", "", ""});
  }

  void opened(const PartOpened& answer, const PartActor& part) {
    const auto it = members_.find(answer.node);
    if (it == members_.end() || answer.job != parts_->job) return;
    if (!answer.fault.ok()) return failed(answer.node, to_error(answer.fault));
    // What it says may be here before its lane is, or it may still believe in a lane to who was
    // the coordinator before: what is sent would be lost.
    if (!parts_->hub->connected(answer.node))
      return self_->delayed_send(self_, kSoon, answer, part);
    MemberState& member = it->second;
    member.part = part;
    self_->monitor(part);
    if (answer.needs_data) send_data(*parts_, answer.node);
    if (member.joining) {
      const bool replicated = parts_->spec.replicas > 0;
      if (replicated) self_->send(part, HeldBy{held_->holders()});  // since it was ordered to
      // The shards send their weights to it, and whatever comes after.
      for (auto& [name, other] : members_) {
        if (name == answer.node || !other.part) continue;
        self_->send(other.part, AddPeer{member.node.place, member.node.serves});
        // What it computes may be for a node that has come since it was ordered to.
        if (replicated) self_->send(part, AddPeer{other.node.place, other.node.serves});
      }
    } else {
      send_weights(*parts_, ranges_, held_->holders(), answer.node);
    }
  }

  void ready(const PartReady& answer) {
    const auto it = members_.find(answer.node);
    if (it == members_.end() || answer.job != parts_->job || it->second.ready || failed_) return;
    it->second.ready = true;
    parts_->members->set(answer.node, {true, {}});
    if (coordinator_) {
      if (it->second.node.trains) add_trainer(it->second);
      held_->came();
    } else if (std::all_of(members_.begin(), members_.end(),
                           [](const auto& member) { return member.second.ready; }))
      start();
  }

  void failed(const std::string& node, const Error& why) {
    if (members_.contains(node)) parts_->failed(node, why);
    lose(node, why);
  }

  void unit_done(const UnitDone& done) {
    const auto it = members_.find(done.node);
    if (it == members_.end() || !coordinator_ || !it->second.trainer) return;
    self_->send(coordinator_,
                WorkDone{*it->second.trainer, done.round, done.unit, from_bits(done.losses)});
  }

  void gathered(const ShardGathered& gathered) {
    if (!coordinator_ || gathered.shard >= ranges_.size() || !speaks(gathered)) return;
    if (gathered.squares.size() != ranges_[gathered.shard].tiles)
      return fail({ErrorCode::kCorrupt, "sent sums for other parts of the model",
                   "node " + gathered.node, ""});
    if (const Status same = held_->gathered(gathered); !same.ok()) fail(unavailable(same.error()));
  }

  void displaced(const DisplacementHere& here) {
    if (coordinator_ && here.shard < ranges_.size())
      self_->send(coordinator_, Displaced{{here.shard}, {here.step}, here.attempt});
  }

  void applied(const ShardApplied& applied) {
    if (!coordinator_ || applied.shard >= ranges_.size() || !speaks(applied)) return;
    if (parts_->spec.consistency.exact())
      held_->applied(applied);
    else
      self_->send(coordinator_, ShardReady{{applied.shard}, {applied.step}});
  }

  void copy_made(const CopyMade& made) {
    if (!coordinator_ || !speaks(made)) return;
    held_->made(made);
    say_copies();
  }

  void held() { held_->held(); }

  void copied(const ShardCopied& copied) {
    if (!coordinator_ || copied.shard >= ranges_.size()) return;
    auto nothing = std::make_shared<ShardState>();  // what it has stays there
    nothing->offset = ranges_[copied.shard].begin;
    self_->send(coordinator_, StateCopied{std::move(nothing)});
  }

  void kept(const PieceKept& kept) {
    if (parts_->collector && kept.job == parts_->job) self_->send(parts_->collector, kept);
  }

  void state_here(StateHere& here) {
    if (!coordinator_ || !held_->takes(here)) return;
    if (here.best)
      self_->send(coordinator_, WeightsCopied{std::move(here.part)});
    else
      self_->send(coordinator_, StateCopied{std::move(here.part)});
  }

  void joins(const JobNode& node) {
    const auto since = left_.find(node.name);
    const bool too_soon =
        since != left_.end() && parts_->clock->now() - since->second < std::chrono::seconds(2);
    const bool of_use = node.trains || (node.serves && parts_->spec.replicas > 0);
    if (!coordinator_ || members_.contains(node.name) || too_soon || !of_use) return;
    parts_->log.info(fmt::format("job {}: node {} joins", parts_->name, node.name));
    order(node, true);
  }

  void peer_lost(const std::string& node, const std::string& peer, const Error& why) {
    const auto a = members_.find(node), b = members_.find(peer);
    if (a == members_.end() || b == members_.end()) return;
    if (!(a->second.ready && b->second.ready)) parts_->apart(node, peer);  // they never met
    const std::string& weaker = held_->needed(peer) && !held_->needed(node) ? node : peer;
    lose(weaker, lost_error(weaker, fmt::format("nodes {} and {} cannot reach each other ({})",
                                                node, peer, why.message())));
  }

  void down(const caf::down_msg& message) {
    for (auto& [name, member] : members_)
      if ((member.part && member.part.address() == message.source) ||
          member.node.actor.address() == message.source) {
        lose(std::string(name), lost_error(name, "its process has ended or cannot be reached"));
        return;
      }
  }

  /// A node is done without, unless it is the only one to hold some of the parameters: then the
  /// incarnation ends.
  void lose(std::string node, const Error& why) {
    const auto it = members_.find(node);
    if (it == members_.end()) return;
    const MemberState member = std::move(it->second);
    members_.erase(it);
    parts_->members->drop(node);
    left_[node] = parts_->clock->now();
    if (parts_->collector) self_->send(parts_->collector, NodeLeft{node});
    if (member.part) self_->send(member.part, EndPart{});
    const bool needed = held_->needed(node) || (!coordinator_ && !member.joining);
    if (needed) return fail(why.code == ErrorCode::kUnavailable ? why : unavailable(why));
    parts_->log.warning(fmt::format("job {}: {}", parts_->name, why.message()));
    for (auto& [name, other] : members_)
      if (other.part) self_->send(other.part, DropPeer{node});
    if (const size_t moved = held_->lose(node); moved > 0)
      parts_->log.info(fmt::format("job {}: other nodes lead the {} shards that node {} led",
                                   parts_->name, moved, node));
    say_copies();
    if (member.proxy) caf::anon_send_exit(member.proxy, caf::exit_reason::kill);
  }

  void tick() {
    if (!coordinator_ && parts_->clock->now() - began_ > kOpening)
      for (const auto& [name, member] : members_)
        if (!member.ready) return lose(std::string(name), lost_error(name, "it did not get ready"));
    if (parts_->cancel != nullptr && parts_->cancel->raised() && !coordinator_)
      return fail({ErrorCode::kCancelled, "stopped before the first step", "", ""});
    self_->delayed_send(self_, kTick, Tick{});
  }

 private:
  struct MemberState {
    JobNode node;
    PartActor part;
    bool joining = false, ready = false;
    uint64_t number = 0;
    std::optional<TrainerId> trainer;
    TrainerActor proxy;
  };

  /// Of an earlier life of the node there may still be words under way.
  template <class Said>
  bool speaks(const Said& said) const {
    const auto it = members_.find(said.node);
    return it != members_.end() && it->second.number == said.number;
  }
  PartActor part_of(const std::string& node) const {
    const auto it = members_.find(node);
    return it == members_.end() ? PartActor() : it->second.part;
  }
  std::vector<std::string> able() const {
    std::vector<std::string> nodes;
    for (const auto& [name, member] : members_)
      if (member.ready && member.node.serves) nodes.push_back(name);
    return nodes;
  }
  void tell_holders() {
    for (const auto& [name, member] : members_)
      if (member.part) self_->send(member.part, HeldBy{held_->holders()});
  }
  void say_copies() {
    if (const int now = held_->fewest(); parts_->copies->exchange(now) != now)
      parts_->log.info(
          fmt::format("job {}: replicas {} of {}", parts_->name, now, parts_->spec.replicas));
  }
  static Error unavailable(const Error& why) {
    return {ErrorCode::kUnavailable, why.what, why.where, why.hint};
  }

  void place_pieces() {
    copies_ = copy_places(owners_, parts_->spec.checkpoint_copies);
    ExpectPieces expected;
    for (size_t i = 0; i < ranges_.size(); i++)
      for (const std::string& node : {owners_[i], copies_[i]})
        if (!node.empty()) expected.reports.emplace_back(ranges_[i].begin, node);
    self_->send(parts_->collector, std::move(expected));
  }

  void fail(const Error& why) {
    failed_ = true;  // the others may yet get ready: it is not to begin without the lost one
    parts_->completion->set(why);
  }

  void order(const JobNode& node, bool joining) {
    MemberState& member = members_[node.name];
    member.node = node;
    member.joining = joining;
    self_->monitor(node.actor);
    PartOrder order = order_of(*parts_, node);
    order.number = member.number = ++orders_;
    order.owners = owners_;
    if (parts_->spec.replicas > 0) order.holders = held_->holders();
    if (joining)
      for (const auto& [name, other] : members_) order.peers.push_back(other.node.place);
    else
      for (const JobNode& other : parts_->nodes) order.peers.push_back(other.place);
    order.joining = joining;
    order.copies = copies_;
    self_->send(node.actor, std::move(order), ConductorActor(ConductorShell(self_)));
  }

  template <class Actor>
  Actor keep(Actor actor) {
    own_.push_back(caf::actor_cast<caf::strong_actor_ptr>(actor));
    return actor;
  }

  /// Every part is ready: the job begins.
  void start() {
    auto driven = std::make_shared<CoordinatorParts>();
    TrainingJob::Setup setup;
    setup.spec = parts_->spec;
    setup.plan = parts_->plan;
    setup.shards = static_cast<int>(ranges_.size());
    setup.windows = parts_->windows;
    setup.evaluation_chunks = parts_->evaluation_chunks;
    setup.evaluation_counted = parts_->evaluation_counted;
    setup.checkpoints = setup.ranges = true;
    setup.clock = parts_->clock;
    setup.cancel = parts_->cancel;
    driven->job = std::make_unique<TrainingJob>(std::move(setup), parts_->state);
    driven->first_weights = parts_->weights;
    driven->best = parts_->best;
    if (parts_->collector) driven->in_pieces = parts_->job;
    driven->progress = [job = driven->job.get(), parts = parts_](const TrainProgress& progress) {
      parts->members->measure(*job);
      if (parts->progress) parts->progress(progress);
    };
    if (parts_->ledger != nullptr) {
      LedgerBegin begin = beginning(parts_->spec, parts_->plan, parts_->windows, parts_->state);
      begin.incarnation = parts_->job;
      const auto name = [members = parts_->members](TrainerId id) { return members->name_of(id); };
      driven->committed = keep_in(parts_->ledger, begin, name, parts_->log);
    }
    driven->log = parts_->log;
    driven->completion = parts_->completion;
    auto& system = self_->system();
    coordinator_ = keep(system.spawn<caf::detached>(coordinator, driven));
    parts_->coordinator = coordinator_;
    driven->writer = parts_->writer;
    for (auto& [name, member] : members_)
      if (member.node.trains) driven->trainers.push_back(trainer_of(member));
    driven->held_still = [self = ConductorShell(self_)] { caf::anon_send(self, Hold{}); };
    for (const RemoteShardActor& shard : held_->begin(coordinator_))
      driven->shards.push_back(keep(shard));
    caf::logger::set_current_actor_system(nullptr);
    self_->send(coordinator_, Begin{});
  }

  TrainerActor trainer_of(MemberState& member) {
    member.trainer = TrainerId{trainers_++};
    member.proxy = keep(self_->system().spawn(remote_trainer, member.part));
    parts_->members->set(member.node.name, {true, member.trainer});
    return member.proxy;
  }

  void add_trainer(MemberState& member) {
    self_->send(coordinator_, TrainerJoined{trainer_of(member)});
  }

  ConductorShell::pointer self_;
  std::shared_ptr<ConductorParts> parts_;
  Nanoseconds began_{0};
  std::vector<std::string> owners_, copies_;
  std::vector<ParameterShard::Range> ranges_;
  std::unique_ptr<JobCopies> held_;
  std::map<std::string, MemberState> members_;
  std::map<std::string, Nanoseconds> left_;
  std::shared_ptr<ConductorSink> sink_;
  CoordinatorActor coordinator_;
  bool failed_ = false;
  uint32_t trainers_ = 0;
  uint64_t orders_ = 0;
  std::vector<caf::strong_actor_ptr> own_;
};

}  // namespace

ConductorShell::behavior_type conductor(ConductorShell::pointer self,
                                        std::shared_ptr<ConductorParts> parts) {
  auto all = std::make_shared<Conductor>(self, std::move(parts));
  self->attach_functor([all](const caf::error&) { all->close(); });
  self->set_down_handler([all](const caf::down_msg& message) { all->down(message); });
  return {
      [=](const PartOpened& answer, const PartActor& part) { all->opened(answer, part); },
      [=](const PartReady& answer) { all->ready(answer); },
      [=](const PartFailed& failed) { all->failed(failed.node, to_error(failed.fault)); },
      [=](const UnitDone& done) { all->unit_done(done); },
      [=](const ShardGathered& gathered) { all->gathered(gathered); },
      [=](const DisplacementHere& here) { all->displaced(here); },
      [=](const ShardApplied& applied) { all->applied(applied); },
      [=](const ShardCopied& copied) { all->copied(copied); },
      [=](const PieceKept& kept) { all->kept(kept); },
      [=](const CopyMade& made) { all->copy_made(made); },
      [=](const PeerLost& lost) { all->peer_lost(lost.node, lost.peer, to_error(lost.fault)); },
      [=](const Hold&) { all->held(); },
      [=](const Begin&) { all->begin(); },
      [=](StateHere& here) { all->state_here(here); },
      [=](const NodeJoins& joins) { all->joins(joins.node); },
      [=](const PeerGone& gone) {
        all->lose(gone.peer, lost_error(gone.peer, gone.why.message()));
      },
      [=](const Tick&) { all->tick(); },
  };
}

}  // namespace fastserve
