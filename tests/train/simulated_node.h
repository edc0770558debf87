// A node of a simulated cluster. Its part in a job follows actors/deputy.cc, part_room.cc,
// parameter_server.cc, slice_sender.cc and trainer.cc, with their classes of train/; with local
// steps local_server.cc.
#pragma once

#include <map>
#include <set>
#include <string>
#include <unordered_map>

#include "fake_backend.h"
#include "simulated_pieces.h"
#include "simulated_world.h"
#include "train/gradient_worker.h"
#include "train/local_range.h"
#include "train/local_rounds.h"
#include "train/loose_range.h"
#include "train/node_work.h"
#include "train/shard_copies.h"
#include "train/unit_sum.h"
#include "train/weight_replica.h"

namespace fastserve::simulated {

class Conductor;
class Node;
class Part;

/// Rules of the protocol, to be broken one at a time: a simulator that cannot fail proves nothing.
struct Broken {
  bool losses_unheard = false;        ///< nobody tells the job of a lost trainer
  bool moments_forgotten = false;     ///< a shard goes on without them
  bool ledger_unsynced = false;       ///< a checkpoint does not wait for the ledger
  bool weights_in_any_order = false;  ///< a range may go back to an earlier step
  bool units_before_weights = false;  ///< a pass does not wait for its step's weights
  bool overtaken_stay = false;        ///< a pass waits on for weights of a step that is over
  bool arrivals_presumed = false;     ///< a displacement counts as arrived when it is sent
  bool pieces_presumed = false;       ///< a piece counts as kept before the disk has it
  bool copies_presumed = false;       ///< a shard has gathered when its leading copy has
  bool promoted_silent = false;       ///< who comes to lead a shard does not send its weights
};

/// What all simulated processes know.
struct Common {
  TrainSpec spec;
  TrainPlan plan;
  std::shared_ptr<Dataset> data;
  std::optional<Sampler> sampler;
  std::optional<EvaluationPlan> evaluation;
  Broken broken;
  bool node_checkpoints = false;
  bool one_at_a_time =
      false;  ///< nothing goes wrong but a crash of a node while no copy is missing
};

/// FakeSource, which remembers what it computed for the same weights and tokens: a thousand jobs of
/// the same bits cost one.
class RememberingSource final : public GradientSource {
 public:
  explicit RememberingSource(FakeBackend& backend) : backend_(backend), source_(backend) {}
  Result<double> run(const Microbatch& batch, float scale, float* grad) override {
    static std::unordered_map<uint64_t, std::pair<double, std::vector<float>>> known;
    const uint64_t key = hash64(
        std::as_bytes(std::span(backend_.packed())),
        hash64(std::as_bytes(std::span(batch.tokens)),
               hash64(std::as_bytes(std::span(batch.targets)), std::bit_cast<uint32_t>(scale))));
    auto [at, fresh] = known.try_emplace(key);
    auto& [loss, gradient] = at->second;
    if (fresh) {
      gradient.resize(FakeBackend::kElements);
      loss = source_.run(batch, scale, gradient.data()).value();
    }
    if (grad != nullptr) std::copy(gradient.begin(), gradient.end(), grad);
    return loss;
  }
  /// In layers of a kind, as a transformer goes.
  Result<double> run_along(const Microbatch& batch, float scale, float* grad,
                           PassFlow& flow) override {
    constexpr size_t kLayer = FakeBackend::kElements / 8;
    for (size_t end = kLayer; end <= FakeBackend::kElements; end += kLayer)
      if (!flow.await_weights(end)) return 0.0;
    const auto loss = run(batch, scale, grad);
    for (size_t from = FakeBackend::kElements; grad != nullptr && from > kLayer; from -= kLayer)
      flow.gradient_final(from - kLayer);
    return loss;
  }
  void add(float* into, const float* other) override { source_.add(into, other); }
  size_t bytes() const override { return 0; }

 private:
  FakeBackend& backend_;
  FakeSource source_;
};

struct Order {  // wire_messages::PartOrder
  uint64_t job = 0;
  StepId step;
  std::vector<std::string> owners, peers;
  ShardHolders holders;
  uint64_t number = 0;              // of the parts of the incarnation
  std::vector<std::string> copies;  // of each shard's piece; none: the coordinator keeps it all
  bool trains = true, joining = false;
  std::weak_ptr<Conductor> conductor;
};

/// Who says something to a conductor: a node in one of its lives.
struct Teller {
  std::string node;
  uint64_t number;
};

/// What a conductor knows a part by.
struct PartRef {
  LinkEnd control;  // the conductor's
  std::weak_ptr<Part> part;
  void tell(std::function<void(Part&)> what, bool repeatable = false) const;
};

enum class Tensor { kGradient, kWeights, kMoments, kPiece, kCopy };

/// A tensor under way: `floats` stay the sender's until they arrive.
struct Parcel {
  Tensor tensor;
  uint64_t job;
  StepId step;
  uint32_t shard;
  Subtree subtree;
  std::span<const float> floats, more;
  std::shared_ptr<const void> owner;
  std::shared_ptr<const ShardState> piece = nullptr;
};

class Part : public std::enable_shared_from_this<Part> {
 public:
  Part(Node& node, Order order, LinkEnd control);

  void begin();
  void close();
  bool ended() const { return ended_; }
  /// Into the deputy's mailbox.
  void tell(Call call);
  /// What is in the mailbox, which often holds the part.
  void forget() { mailbox_.clear(); }

  // What the deputy is told.
  void give(const WorkItem& item);
  void apply(uint32_t shard, const ApplyOrder& order);
  void skip(uint32_t shard, StepId step);
  void close_round(uint32_t shard, const RoundClose& order);
  enum class Copy { kState, kBest, kFinal };
  void copy(uint32_t shard, Copy what, int64_t step);
  void add_peer(const std::string& peer, bool serves);
  void drop_peer(const std::string& peer) {
    meetings_.erase(peer);
    std::erase(peers_, peer);
    spare_.erase(peer);
  }
  void held_by(const ShardHolders& holders);
  void seed(uint32_t shard, const std::string& to);
  void peer_gone(const std::string& peer);

  /// A tensor from `peer`: refused, or for one of the part's actors.
  void arrived(const std::string& peer, const Parcel& parcel);

  const Order order_;
  const LinkEnd control_;

 private:
  /// When to look again: ever less often, since a slow node keeps others waiting for long.
  struct Patience {
    Nanoseconds next(World& world) {
      most = std::min<Nanoseconds>(2 * most, 50ms);
      return world.delay(5us, most);
    }
    Nanoseconds most = 100us;
  };
  /// Of an actor that may have to wait in the midst of a message: false, and it is asked again.
  struct Mailbox {
    std::deque<std::function<bool()>> waiting;
    bool blocked = false;
    Patience patience;
  };
  /// A unit at work in an exact job.
  struct Pass {
    WorkItem item;
    size_t held = 0;  // ranges of the weights
    Patience patience;
    std::optional<Result<GradientWorker::Done>> done;
    size_t pushed = 0;                                       // shards, from the last one on
    std::deque<std::pair<GradientHandle, size_t>> finished;  // from which element on
  };
  struct Trainer {
    std::unique_ptr<GradientWorker> worker;
    std::deque<WorkItem> mailbox;
    bool busy = false;
    Channel to_deputy;
    std::vector<Channel> to_shards;
    Pass pass;
  };
  struct Shard {
    std::unique_ptr<ParameterShard> owned;
    std::unique_ptr<UnitSum> elsewhere;  // of what other nodes get
    bool gathered = false;
    std::optional<StepId> copied;       // from another node that holds it
    std::unique_ptr<LocalRange> local;  // or, with local steps, this alone
    std::unique_ptr<LooseRange> loose;  // or, with loose consistency
    std::unique_ptr<GradientPool> slices;
    Channel from_deputy, from_lanes, to_deputy, to_taker, from_taker;
    Mailbox mailbox;  // in an exact job
  };

  void to_conductor(std::function<void(Conductor&)> say, bool repeatable = false);
  void wait_until(std::function<bool()> met, std::function<void(bool)> then, bool block = true);
  bool dial(const std::string& peer);
  void build();
  void opened();
  void refuse();
  void fail();
  void look();
  void pump();
  void work_done(uint32_t trainer, uint64_t round, uint32_t unit,
                 const std::vector<double>& losses);
  void run_next(uint32_t trainer);
  void finish(uint32_t trainer, const WorkItem& item, Result<GradientWorker::Done> done);
  void push_later(uint32_t trainer, uint32_t shard, const WorkItem& item, GradientHandle sum);
  // In an exact job: simulated_pass.h.
  void begin_pass(uint32_t trainer, WorkItem item);
  void read_on(uint32_t trainer);
  void go_back(uint32_t trainer);
  void end_pass(uint32_t trainer);
  Nanoseconds some_time();
  void to_mailbox(Mailbox& box, std::function<bool()> what);
  void drain(Mailbox& box);
  /// To an actor of a shard of its own, or one that sends to the owner.
  void to_shard(uint32_t shard, Channel& channel, std::function<bool()> what);
  void update(uint32_t shard, StepId step, std::function<void()> what);
  void push(uint32_t shard, StepId step, Subtree subtree, Subtree whole, GradientHandle sum);
  void push_own(uint32_t shard, StepId step, Subtree subtree, Subtree whole, GradientHandle sum);
  void seeded(const Parcel& parcel, std::vector<float> weights, const std::vector<float>& moments);
  bool met_all();
  Teller from_here() const;
  void publish(uint32_t shard, const std::string* only);
  void copied(uint32_t shard, Copy what, int64_t step, std::shared_ptr<const ShardState> state);
  void keep_piece(uint32_t shard, int64_t step, std::shared_ptr<const ShardState> state,
                  bool owner);
  void ready(uint32_t shard, StepId step);
  bool take_weights(const std::string& peer, const Parcel& parcel);
  bool owns(uint32_t shard) const;
  // Unless the job is exact: simulated_local.h.
  bool apart() const;
  void build_apart(uint32_t shard);
  void restore(Shard& shard, const std::vector<float>& m, const std::vector<float>& v);
  void open(StepId whole);
  void give_apart(WorkItem item);
  void push_apart(uint32_t shard, StepId step, Subtree subtree, Subtree whole, GradientHandle sum);
  void take_apart(const std::string& peer, const Parcel& parcel);
  void gradient_here(const std::string& peer, const Parcel& parcel, GradientHandle values);
  static std::span<const float> weights_of(const Shard& shard);
  static StepId version_of(const Shard& shard, const std::string* only);
  static std::shared_ptr<const ShardState> snapshot_of(const Shard& shard);
  void send(uint32_t shard, const LocalRounds::Push& order);
  void apply_loose(uint32_t shard, const std::string& peer, StepId step, Subtree run,
                   GradientHandle gradient);
  void carry_out(const LocalRounds::Orders& orders);
  void displace(uint32_t shard, const LocalRounds::Displace& order);
  void displacement_here(uint32_t shard, StepId round, uint32_t attempt, GradientHandle values);
  void arrived_here(uint32_t shard, StepId step, uint32_t name);
  void check_counted(uint32_t shard, const RoundClose& order);
  /// To the deputy's LocalRounds.
  void to_rounds(uint32_t shard, std::function<LocalRounds::Orders(LocalRounds&)> what);
  /// In the process's time, through a channel, unless the part has ended by then.
  void later(Channel& channel, Call call);

  Node& node_;
  HeldShards held_;
  std::vector<ParameterShard::Range> ranges_;
  FakeBackend backend_;
  WeightsGate gate_;
  std::unique_ptr<WeightReplica> replica_;
  std::unique_ptr<NodeWork> work_;
  std::optional<LocalRounds> rounds_;
  GradientPool pool_{[this] { return backend_.allocate(FakeBackend::kElements * 4); }};
  std::vector<Shard> shards_;
  std::vector<Trainer> trainers_;
  std::vector<Mailbox> takers_;
  std::vector<std::string> peers_;
  std::set<std::string> spare_;  // nodes that have joined, and may keep copies
  std::set<std::string> meetings_;
  std::deque<Call> mailbox_;
  bool blocked_ = false, draining_ = false, built_ = false, ready_ = false, ended_ = false;
  uint32_t moments_missing_ = 0;
};

/// One life of a node's process.
class Node {
 public:
  Node(World& world, const Common& common, std::string name, int lanes, bool trains, bool serves)
      : world(world),
        common(common),
        name(std::move(name)),
        lanes(lanes),
        trains(trains),
        serves(serves),
        process(std::make_shared<Process>(world)) {}
  ~Node() {
    for (const auto& part : parts) part->forget();
  }

  // LaneHub
  void adopt(const std::string& peer, const LinkEnd& lane, std::weak_ptr<Node> other) {
    const auto it = bulk.find(peer);
    const bool replaced = it != bulk.end();
    if (replaced) it->second.lane.link->forget(it->second.lane.end);
    bulk[peer] = {lane, std::move(other)};
    if (replaced) lost(peer);
    lane.link->on_lost(lane.end, [this, peer, lane] {
      const auto at = bulk.find(peer);
      if (at == bulk.end() || !(at->second.lane == lane)) return;
      bulk.erase(at);
      lost(peer);
    });
  }
  void lost(const std::string& peer) {
    for (const auto& [job, part] : std::map(sinks))
      part->tell([part, peer] { part->peer_gone(peer); });
  }
  bool connected(const std::string& peer) const { return bulk.contains(peer); }
  void send(const std::string& peer, Parcel parcel, uint32_t urgency) {
    const auto it = bulk.find(peer);
    if (it == bulk.end()) return;
    it->second.lane.send(
        [other = it->second.other, me = name, parcel = std::move(parcel)] {
          if (const auto there = other.lock()) there->arrived(me, parcel);
        },
        true, urgency);
  }
  void arrived(const std::string& peer, const Parcel& parcel) {
    const auto it = sinks.find(parcel.job);
    if (it != sinks.end()) it->second->arrived(peer, parcel);
  }

  /// The control connection has ended: so do its parts, once their deputies hear of it.
  void control_lost(const LinkEnd& link) {
    for (const auto& part : std::vector(parts))
      if (part->control_ == link) part->tell([part] { part->close(); });
  }

  World& world;
  const Common& common;
  const std::string name;
  const int lanes;
  const bool trains, serves;
  const ProcessHandle process;
  std::shared_ptr<Disk> disk;
  double pace = 1;  ///< of its trainers: larger is slower
  struct Bulk {
    LinkEnd lane;
    std::weak_ptr<Node> other;  // nobody: the coordinator
  };
  std::map<std::string, Bulk> bulk;
  std::map<uint64_t, std::shared_ptr<Part>> sinks;
  std::vector<std::shared_ptr<Part>> parts;
  std::optional<LinkEnd> control;
  std::function<bool(Node&, const std::string& peer)> dial;  ///< connects a lane to another node
};

inline void PartRef::tell(std::function<void(Part&)> what, bool repeatable) const {
  control.send(
      [part = part, what = std::move(what)] {
        const auto there = part.lock();
        if (there && !there->ended()) there->tell([there, what] { what(*there); });
      },
      repeatable);
}

inline const std::string kCoordinator;  // the name under which its lane is known

}  // namespace fastserve::simulated
