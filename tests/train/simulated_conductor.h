// The coordinator's side of one incarnation in a simulated cluster: follows actors/conductor.cc and
// the shell in coordinator.cc around a TrainingJob.
#pragma once

#include "simulated_node.h"
#include "train/copy_maker.h"
#include "train/ledger_file.h"

namespace fastserve::simulated {

struct Saved {  // a checkpoint
  JobState state;
  std::vector<float> weights, m, v;
};

/// A node as the coordinator's table has it.
struct Known {
  std::weak_ptr<Node> node;
  std::string name;
  int lanes = 1;
  bool trains = true, serves = true;
  LinkEnd control;
};

class Conductor : public std::enable_shared_from_this<Conductor> {
 public:
  struct Around {
    World* world;
    const Common* common;
    ProcessHandle process;
    uint64_t job;
    Saved from;
    std::vector<Known> nodes;
    std::shared_ptr<LedgerFile> ledger;
    std::function<void(Saved)> write;  ///< answered with written(); in pieces it has no floats
    std::function<void(const PieceReport&)> kept;
    std::function<void(const std::string& node)> left;
    std::function<LinkEnd(const std::string& node)> lane;
    std::function<void()> promoted, seeded;  ///< a node leads shards that another led; holds one
  };
  explicit Conductor(Around around) : around_(std::move(around)) {}

  void begin() {
    began_ = clock().now();
    for (uint64_t stripes = 1 + world().rng.below(3); stripes > 0; stripes--)
      for (const Known& node : around_.nodes)
        if (node.serves) owners_.insert(owners_.end(), static_cast<size_t>(node.lanes), node.name);
    const FakeBackend model;
    ranges_ =
        ParameterShard::ranges(const_cast<FakeBackend&>(model), static_cast<int>(owners_.size()));
    owners_.resize(ranges_.size());
    proxies_.resize(ranges_.size());
    std::vector<std::string> serving;
    for (const Known& node : around_.nodes)
      if (node.serves) serving.push_back(node.name);
    held_.emplace(place_copies(owners_, serving, replicas()),
                  StepId{static_cast<uint64_t>(around_.from.state.steps_done)});
    maker_.emplace(*held_, replicas());
    asked_.resize(ranges_.size());
    if (around_.common->node_checkpoints) copies_of_ = copy_places(owners_, 2);
    for (const Known& node : around_.nodes) order(node, false);
    tick();
  }
  void close() {
    closed_ = true;
    for (auto& [name, member] : members_) member.part.tell([](Part& part) { part.close(); });
  }
  /// With its process.
  void abandon() { closed_ = true; }
  bool closed() const { return closed_; }
  const std::optional<Result<TrainEnd>>& end() const { return end_; }
  const std::optional<Saved>& last() const { return last_; }
  bool at_work() const { return job_.has_value(); }
  /// The job is at work, and can do without any one node.
  bool all_copied() const;
  const JobState& state() const { return job_ ? job_->state() : around_.from.state; }
  bool has(const std::string& node) const { return members_.contains(node); }
  /// For a failure's message.
  std::string described() const {
    std::string text = job_ ? "at step " + std::to_string(state().steps_done) : "opening";
    text += ", copies of " + std::to_string(copies_.size()) + " shards of " +
            std::to_string(ranges_.size());
    for (const auto& [name, member] : members_)
      text += ", " + name + (needed(name) ? " is needed" : "") +
              (member.trainer       ? " trains"
               : member.node.trains ? " will train"
                                    : "") +
              (member.ready ? "" : " not ready");
    return text;
  }

  // What parts say.
  void opened(const std::string& node, const PartRef& part);
  void ready(const std::string& node);
  void unit_done(const std::string& node, uint64_t round, uint32_t unit,
                 std::vector<double> losses);
  void gathered(const Teller& from, uint32_t shard, StepId step, std::vector<double> squares);
  void displaced(uint32_t shard, StepId step, uint32_t attempt) {
    if (job_) tell(job_channel_, [=, this] { carry_out(job_->displaced({shard}, step, attempt)); });
  }
  void applied(const Teller& from, uint32_t shard, StepId step);
  void state_here(std::shared_ptr<const ShardState> part, bool best);
  void seeded(const Teller& from, uint32_t shard, StepId step);
  void shard_copied(uint32_t shard) {
    if (!job_) return;
    auto nothing = std::make_shared<ShardState>();
    nothing->offset = ranges_[shard].begin;
    tell(job_channel_, [=, this] { copied(nothing); });
  }
  void kept(const PieceReport& report) { around_.kept(report); }
  void joins(const Known& node);
  void peer_lost(const std::string& node, const std::string& peer);
  /// A node is done without, unless it is the only one to hold some of the parameters.
  void lose(const std::string& node);
  void control_lost(const LinkEnd& control) {
    for (const auto& [name, member] : members_)
      if (member.node.control == control) return lose(std::string(name));
  }
  void written(Status status) {
    tell(writer_channel_, [=, this] { carry_out(job_->checkpoint_written(status)); });
  }

 private:
  struct Member {
    Known node;
    PartRef part;
    bool joining = false, ready = false;
    uint64_t number = 0;
    std::optional<TrainerId> trainer;
  };
  struct Trainer {  // remote_trainer
    Trainer(PartRef at, std::string name) : part(std::move(at)), node(std::move(name)) {}
    PartRef part;
    std::string node;
    bool monitored = false, dead = false;  // of a dead one the job hears once it knows it
    Channel out, down;
  };

  World& world() { return *around_.world; }
  const Clock& clock() const { return around_.process->clock; }
  /// Of an earlier life of the node there may still be words under way.
  bool speaks(const Teller& from) const {
    const auto it = members_.find(from.node);
    return it != members_.end() && it->second.number == from.number;
  }
  bool exact() const { return around_.common->spec.consistency.exact(); }
  int replicas() const { return around_.common->spec.replicas; }
  /// Whether the incarnation ends with the node.
  bool needed(const std::string& node) const { return held_->needed(node); }
  void gathered(const ShardCopies::Gathered& whole);
  void ready(const ShardCopies::Ready& whole);
  void lose_copies(const std::string& node);
  void tell_holders();
  void want_copies();
  void make_copies();
  void look_at_hold();
  std::vector<std::string> able() const;
  void fail() {
    if (!end_) end_ = Error{ErrorCode::kUnavailable, "a node is lost", "", ""};
  }
  /// To another actor of this process, unless the incarnation is over by then.
  void tell(Channel& channel, Call call) {
    world().tell(channel, around_.process, [self = shared_from_this(), call] {
      if (!self->closed_) call();
    });
  }
  void tick();
  void job_tick();
  void order(const Known& node, bool joining);
  void send_weights(const Member& member);
  void start();
  TrainerId add_trainer(Member& member);
  void trainers_joined(const std::vector<TrainerId>& trainers);
  void trainer_down(TrainerId trainer);
  void copied(std::shared_ptr<const ShardState> part);

  void check_ahead(const WorkItem& item);
  void carry_out(Actions actions) {
    for (Action& action : actions) std::visit([&](auto& order) { carry_out(order); }, action);
  }
  void carry_out(GiveWork& order) {
    check_ahead(order.item);
    Trainer& to = trainers_[order.trainer.value];
    if (to.dead) return;
    order.item.claim = nullptr;
    tell(to.out, [&to, item = order.item] {
      if (!to.dead) to.part.tell([item](Part& part) { part.give(item); }, true);
    });
  }
  void carry_out(const Commit& commit) { committed_(commit); }
  void carry_out(const ApplyStep& step) {
    asked_.assign(ranges_.size(), false);
    each_copy([order = step.order](Part& part, uint32_t shard) { part.apply(shard, order); });
  }
  void carry_out(const CloseRound& round) {
    each_copy(
        [order = round.order](Part& part, uint32_t shard) { part.close_round(shard, order); });
  }
  void carry_out(const SkipStep& order) {
    asked_.assign(ranges_.size(), false);
    each_copy([step = order.step](Part& part, uint32_t shard) { part.skip(shard, step); });
  }
  void carry_out(const KeepBest&) {
    each_copy([](Part& part, uint32_t shard) { part.copy(shard, Part::Copy::kBest, 0); });
  }
  void carry_out(const TakeSnapshot& order) {
    copied_state_ = order.state;
    copies_.clear();
    asked_.assign(ranges_.size(), true);
    for (uint32_t i = 0; i < ranges_.size(); i++) tell(proxies_[i], [=, this] { ask(i); });
  }
  void carry_out(const HoldStill&) {
    tell(hold_channel_, [this] { make_copies(); });
  }
  void carry_out(const Report&) {}
  void carry_out(const Warn&) {}
  void carry_out(const Finish& order) {
    if (end_ || !order.end.ok() || !around_.common->node_checkpoints) {
      if (!end_) end_ = order.end;
      return;
    }
    ended_ = *order.end;  // what it ends in is with the nodes
    copies_.clear();
    each_copy([](Part& part, uint32_t shard) { part.copy(shard, Part::Copy::kFinal, 0); });
  }
  template <class Say>
  void each_copy(Say say) {
    for (uint32_t i = 0; i < ranges_.size(); i++)
      tell(proxies_[i], [=, this] {
        for (const std::string& node : held_->holders()[i]) tell_part(node, say, i);
      });
  }
  template <class Say>
  void tell_part(const std::string& node, Say say, uint32_t shard) {
    const auto it = members_.find(node);
    if (it != members_.end()) it->second.part.tell([=](Part& part) { say(part, shard); });
  }
  /// For the shard's state.
  void ask(uint32_t shard) {
    const auto say = [step = copied_state_.steps_done](Part& part, uint32_t i) {
      part.copy(i, Part::Copy::kState, step);
    };
    tell_part(held_->leader(shard), say, shard);
  }

  const Around around_;
  Nanoseconds began_{0};
  std::vector<std::string> owners_, copies_of_;
  std::vector<ParameterShard::Range> ranges_;
  std::map<std::string, Member> members_;
  std::map<std::string, Nanoseconds> left_;
  std::deque<Trainer> trainers_;
  std::deque<Channel> proxies_;  // of shards
  std::optional<ShardCopies> held_;
  std::optional<CopyMaker> maker_;
  std::vector<bool> asked_;  // for their state, since the last step
  uint64_t orders_ = 0;
  Channel job_channel_, writer_channel_, hold_channel_;
  std::optional<TrainingJob> job_;
  std::function<void(const Commit&)> committed_;
  JobState copied_state_;
  std::vector<std::shared_ptr<const ShardState>> copies_;
  std::optional<Saved> last_;
  std::optional<TrainEnd> ended_;
  std::optional<Result<TrainEnd>> end_;
  bool closed_ = false;
};

inline void Conductor::ready(const std::string& node) {
  const auto it = members_.find(node);
  if (it == members_.end() || it->second.ready || end_) return;
  it->second.ready = true;
  if (job_) {
    want_copies();
    if (!it->second.node.trains) return;
    const TrainerId trainer = add_trainer(it->second);
    tell(job_channel_, [=, this] { trainers_joined({trainer}); });
  } else if (std::all_of(members_.begin(), members_.end(),
                         [](const auto& member) { return member.second.ready; })) {
    start();
  }
}

inline void Conductor::unit_done(const std::string& node, uint64_t round, uint32_t unit,
                                 std::vector<double> losses) {
  const auto it = members_.find(node);
  if (it == members_.end() || !job_ || !it->second.trainer) return;
  tell(job_channel_, [=, this, trainer = *it->second.trainer] {
    carry_out(job_->work_done(trainer, round, unit, losses));
  });
}

inline void Conductor::joins(const Known& node) {
  const auto since = left_.find(node.name);
  const bool too_soon = since != left_.end() && clock().now() - since->second < 2s;
  const bool of_use = node.trains || (replicas() > 0 && node.serves);
  if (!job_ || members_.contains(node.name) || too_soon || !of_use) return;
  order(node, true);
}

inline void Conductor::peer_lost(const std::string& node, const std::string& peer) {
  if (!members_.contains(node) || !members_.contains(peer)) return;
  lose(needed(peer) && !needed(node) ? node : peer);
}

inline void Conductor::lose(const std::string& node) {
  const auto it = members_.find(node);
  if (it == members_.end()) return;
  const Member member = std::move(it->second);
  members_.erase(it);
  left_[node] = clock().now();
  around_.left(node);
  member.part.tell([](Part& part) { part.close(); });
  if (needed(node) || (!job_ && !member.joining)) return fail();
  for (auto& [name, other] : members_)
    other.part.tell([node](Part& there) { there.drop_peer(node); });
  lose_copies(node);
  if (!member.trainer) return;
  trainers_[member.trainer->value].dead = true;
  trainer_down(*member.trainer);
}

inline void Conductor::trainer_down(TrainerId trainer) {
  Trainer& proxy = trainers_[trainer.value];
  if (!proxy.dead || !proxy.monitored || around_.common->broken.losses_unheard) return;
  tell(proxy.down, [=, this] {
    carry_out(job_->trainer_lost(trainer, {ErrorCode::kUnavailable, "has stopped", "", ""}));
  });
}

inline void Conductor::trainers_joined(const std::vector<TrainerId>& trainers) {
  for (const TrainerId trainer : trainers) trainers_[trainer.value].monitored = true;
  carry_out(job_->trainers_joined(trainers));
  for (const TrainerId trainer : trainers) trainer_down(trainer);
}

inline void Conductor::tick() {
  if (closed_) return;
  if (!job_ && clock().now() - began_ > 2min)
    for (const auto& [name, member] : members_)
      if (!member.ready) {
        lose(std::string(name));
        break;
      }
  world().post(around_.process, 200ms, [self = shared_from_this()] { self->tick(); });
}

inline void Conductor::job_tick() {
  if (closed_) return;
  carry_out(job_->tick());
  world().post(around_.process, 500ms, [self = shared_from_this()] { self->job_tick(); });
}

}  // namespace fastserve::simulated
