#include <fmt/format.h>

#include <algorithm>

#include "actors/exact_part.h"
#include "actors/local_part.h"
#include "actors/loose_server.h"
#include "actors/peer_meetings.h"
#include "actors/piece_keeper.h"
#include "actors/taker.h"
#include "actors/trainer.h"

namespace fastserve {

using namespace messages;
using namespace wire_messages;

namespace {

class Deputy {
 public:
  Deputy(DeputyActor::pointer self, std::shared_ptr<const NodeParts> node, PartOrder order,
         ConductorActor conductor)
      : self_(self), node_(std::move(node)), meetings_(node_), conductor_(std::move(conductor)) {
    order_ = std::move(order);
  }

  /// Whatever ends the actor, its own actors and its place in the hub end, too.
  void close() {
    if (room_ == nullptr) return;
    room_->close();
    if (sink_ != nullptr) node_->hub->close(order_.job, *sink_);
    for (const auto& actor : own_) caf::anon_send_exit(actor, caf::exit_reason::kill);
    own_.clear();
    room_->servers.clear();
    exact_ = nullptr;
    local_ = nullptr;
    copies_ = nullptr;
    room_ = nullptr;
  }

  void begin() {
    self_->monitor(conductor_);
    auto room = PartRoom::create(node_, order_);
    if (!room.ok()) return refuse(room.error());
    room_ = std::move(*room);
    sink_ = std::make_shared<PartSink>(room_, DeputyActor(self_));
    node_->hub->open(order_.job, sink_);
    if (const Status status = connect(); !status.ok()) return refuse(status.error());
    const bool found = room_->find_data();
    if (found)
      if (const Status status = build(); !status.ok()) return refuse(status.error());
    self_->send(conductor_, PartOpened{order_.job, node_->name, {}, !found},
                PartActor(DeputyActor(self_)));
  }

  void data_here(const DataHere& data) {
    if (room_ == nullptr || room_->backend != nullptr) return;
    if (const Status status = room_->keep_data(data.validation, *data.bytes); !status.ok())
      return fail(status.error());
    if (!room_->has_data() ||
        (order_.validation_bytes > 0 && room_->dataset.validation.size() == 0))
      return;
    if (const Status status = build(); !status.ok()) fail(status.error());
  }

  void weights_here(WeightsHere& here) {
    if (room_ == nullptr || takers_.empty()) return;
    if (local_ != nullptr) return local_->weights_here(here);
    self_->send(takers_[here.shard % takers_.size()], std::move(here));
  }

  void gradient_here(GradientHere& here) {
    if (room_ != nullptr && !takers_.empty())
      self_->send(takers_[here.shard % takers_.size()], std::move(here));
  }

  void moments_here(const MomentsHere& here) {
    if (room_ == nullptr || room_->backend == nullptr) return;
    const std::span<const float> both(*here.both);
    if (local_ != nullptr)
      local_->restore(here);
    else
      room_->shards[here.shard]->restore_range(both.first(both.size() / 2),
                                               both.subspan(both.size() / 2));
    moments_missing_ -= moments_missing_ > 0;
    look();
  }

  /// Which step the weights are at. An exact step begins with its first: units wait for the others.
  void look() {
    if (room_ == nullptr || room_->replica == nullptr) return;
    const bool by_range = ready_ && local_ == nullptr;
    const auto step = by_range ? room_->replica->newest() : room_->replica->whole();
    if (!step || moments_missing_ > 0 || !met_all()) return;
    if (local_ != nullptr && !ready_) local_->open(*step);
    if (local_ != nullptr)
      local_->carry_out(local_->rounds().weights_ready(*step));
    else
      work_->weights_ready(*step);
    if (!ready_) {
      ready_ = true;
      room_->make_shadows();
      self_->send(conductor_, PartReady{order_.job, node_->name});
    }
    pump();
  }

  void give(const GiveUnit& unit) {
    if (room_ == nullptr || work_ == nullptr) return;
    WorkItem item;
    item.kind = unit.kind == 0 ? WorkItem::Kind::kGradient : WorkItem::Kind::kEvaluation;
    item.round = unit.round;
    item.unit = unit.unit;
    item.step = {unit.step};
    item.weights = local_ != nullptr ? local_->weights_of(item.step) : item.step;
    item.subtree = item.whole = {unit.first, unit.count};
    item.scale = std::bit_cast<float>(unit.scale);
    item.steps = unit.steps;
    item.attempt = unit.attempt;
    const bool evaluation = item.kind == WorkItem::Kind::kEvaluation;
    if (!room_->can_compute(item))
      return fail(
          {ErrorCode::kCorrupt, "was given work that cannot be", "node " + node_->name, ""});
    if (local_ != nullptr && !evaluation)
      local_->carry_out(local_->rounds().give(std::move(item)));
    else
      work_->give(std::move(item));
    pump();
  }

  void pump() {
    if (work_ == nullptr) return;
    for (NodeWork::Piece& piece : work_->hand_out(node_->clock->now()))
      self_->send(trainers_[piece.trainer], Work{std::move(piece.item)});
  }

  void work_done(const WorkDone& done) {
    if (work_ == nullptr) return;
    const auto unit = work_->done(done.trainer.value, done.round, done.unit, done.losses);
    if (unit && local_ != nullptr && unit->kind == WorkItem::Kind::kGradient)
      local_->carry_out(local_->rounds().computed(*unit));
    else if (unit)
      report(*unit);
    pump();
  }

  void report(const NodeWork::UnitDone& unit) {
    self_->send(conductor_, UnitDone{node_->name, unit.round, unit.unit, to_bits(unit.losses)});
  }

  void gathered(Gathered& gathered) {
    if (local_ == nullptr)
      return self_->send(conductor_, ShardGathered{node_->name, order_.number, gathered.shard.value,
                                                   gathered.step.value, to_bits(gathered.squares)});
    local_->carry_out(local_->rounds().gathered(gathered.shard.value, gathered.step,
                                                std::move(gathered.squares)));
    pump();
  }

  void local_applied(const LocalApplied& applied) {
    if (local_ == nullptr) return;
    local_->carry_out(local_->rounds().applied(applied.range, applied.step));
    pump();
  }

  void local_displaced(const LocalDisplaced& displaced) {
    if (local_ == nullptr) return;
    local_->carry_out(local_->rounds().displaced(displaced.range, displaced.round));
    pump();
  }

  void shard_ready(const ShardReady& ready) {
    if (room_ == nullptr) return;
    if (local_ == nullptr) room_->replica->applied(ready.shard.value, {ready.step.value + 1});
    self_->send(conductor_,
                ShardApplied{node_->name, order_.number, ready.shard.value, ready.step.value});
    look();
  }

  void copied(const std::shared_ptr<const ShardState>& part) {
    if (room_ != nullptr && copies_ != nullptr) copies_->copied(part);
  }

  void copy(const CopyShard& order) {
    if (room_ == nullptr || copies_ == nullptr || !copies_->ordered(order)) return;
    if (order.what == CopyShard::kState)
      to_shard(order.shard, CopyState{});
    else
      to_shard(order.shard, CopyWeights{});
  }

  template <class Order>
  void to_shard(uint32_t shard, Order order) {
    if (exact_ != nullptr) return exact_->to_shard(shard, std::move(order));
    if (room_ == nullptr || shard >= shards_.size() || !room_->owns(shard)) return;
    self_->send(shards_[shard], std::move(order));
  }

  void held_by(const HeldBy& held) {
    if (exact_ != nullptr) return exact_->held_by(held.holders);
    if (room_ != nullptr) room_->held.set(held.holders);
  }

  void copy_here(const CopyHere& copy) {
    if (exact_ == nullptr || !exact_->copy_here(copy)) return;
    self_->send(conductor_,
                CopyMade{node_->name, order_.number, copy.shard, copy.state->step.value});
    look();
  }

  void add_peer(const AddPeer& peer) {
    if (room_ == nullptr) return;
    if (peer.serves && copies_ != nullptr) copies_->joins(peer.place.node);
    meetings_.begin(self_, peer.place);
  }

  void peer_met(const PeerMet& met) {
    if (room_ == nullptr || !meetings_.end(met)) return;
    if (!met.status.ok()) return peer_gone({met.node, met.status.error()});
    room_->peers.add(met.node);
    if (copies_ != nullptr) copies_->met(met.node);
    if (exact_ != nullptr) return exact_->joined(met.node);
    for (uint32_t i = 0; i < shards_.size(); i++)
      if (room_->owns(i)) self_->send(shards_[i], SendWeights{met.node});
  }

  void drop_peer(const std::string& node) {
    meetings_.drop(node);
    if (room_ != nullptr) room_->peers.drop(node);
    if (copies_ != nullptr) copies_->left(node);
  }

  void peer_gone(const PeerGone& gone) {
    if (gone.peer == kCoordinatorPeer) return;  // the conductor's end says so, too
    drop_peer(gone.peer);
    self_->send(conductor_, PeerLost{node_->name, gone.peer, to_fault(gone.why)});
  }

  /// An exact job goes on without: what was pushed of its piece comes again in the same bits.
  void trainer_failed(const TrainerFailed& failed) {
    if (exact_ == nullptr || work_->trainers() == 1) return fail(failed.error);
    node_->log.warning(fmt::format("job {}: goes on with {} of {} trainers: {}", order_.name,
                                   work_->trainers() - 1, trainers_.size(),
                                   failed.error.message()));
    work_->lose(failed.trainer.value);
    pump();
  }

  void fail(const Error& error) {
    node_->log.warning(fmt::format("job {}: {}", order_.name, error.message()));
    self_->send(conductor_, PartFailed{order_.job, node_->name, to_fault(error)});
    self_->quit(caf::exit_reason::user_shutdown);
  }

 private:
  void refuse(const Error& error) {
    node_->log.warning(fmt::format("job {}: {}", order_.name, error.message()));
    self_->send(conductor_, PartOpened{order_.job, node_->name, to_fault(error), false},
                PartActor(DeputyActor(self_)));
    self_->quit(caf::exit_reason::user_shutdown);
  }

  /// Where anybody may come to hold a shard, one that joins is ready when it has met everybody.
  bool met_all() {
    if (ready_ || !order_.joining || room_->spec.replicas == 0 || meetings_.all(room_->peers))
      return true;
    self_->delayed_send(self_, std::chrono::milliseconds(20), Tick{});
    return false;
  }

  Status connect() {
    return meetings_.open(order_, room_->peers, [this](const std::string& node, const Error& why) {
      peer_gone({node, why});
    });
  }

  Status build() {
    FS_TRY(room_->build());
    const DeputyActor me(self_);
    const CoordinatorActor superior(me);
    auto& system = self_->system();
    const auto keep = [&](const auto& actor) {
      own_.push_back(caf::actor_cast<caf::strong_actor_ptr>(actor));
      return actor;
    };
    std::vector<LocalServerActor> local;
    const bool alone = room_->spec.consistency.local();
    for (uint32_t i = 0; i < room_->ranges.size(); i++) {
      moments_missing_ += order_.step > 0 && !order_.joining && (alone || room_->owns(i));
      if (room_->spec.consistency.exact()) continue;
      local.push_back(
          keep(system.spawn<caf::detached>(alone ? local_server : loose_server, room_, i, me)));
      shards_.push_back(local.back());
      if (room_->owns(i)) room_->servers.set(i, local.back());
    }
    if (room_->spec.consistency.exact()) {
      exact_ = std::make_unique<ExactPart>(self_, room_, own_);
      shards_ = exact_->begin();
    }
    for (uint32_t i = 0; i < room_->workers.size(); i++) {
      // A killed actor may be at work for a while yet: what it works on lives as long.
      std::shared_ptr<GradientWorker> worker(room_, room_->workers[i].get());
      trainers_.push_back(
          keep(system.spawn<caf::detached>(trainer, TrainerId{i}, std::move(worker), superior,
                                           shards_, ParameterShard::begins(room_->ranges))));
    }
    for (int i = 0; i < node_->lanes; i++)
      takers_.push_back(keep(system.spawn<caf::detached>(taker, room_, shards_, me)));
    const auto keeper = room_->spec.node_checkpoints
                            ? keep(system.spawn<caf::detached>(piece_keeper, room_, conductor_))
                            : PieceKeeperActor();
    copies_ = std::make_unique<PartCopies>(room_, conductor_, keeper);
    caf::logger::set_current_actor_system(nullptr);
    work_ =
        std::make_unique<NodeWork>(static_cast<uint32_t>(std::max<size_t>(1, trainers_.size())));
    if (!local.empty())
      local_ =
          std::make_unique<LocalPart>(self_, room_, *work_, std::move(local),
                                      [this](const NodeWork::UnitDone& unit) { report(unit); });
    sink_->set_keeper(keeper);
    return {};
  }

  DeputyActor::pointer self_;
  std::shared_ptr<const NodeParts> node_;
  PeerMeetings meetings_;
  PartOrder order_;
  ConductorActor conductor_;
  std::shared_ptr<PartRoom> room_;
  std::shared_ptr<PartSink> sink_;
  std::unique_ptr<NodeWork> work_;
  std::unique_ptr<LocalPart> local_;  // unless the job is exact
  std::unique_ptr<ExactPart> exact_;  // if it is
  std::unique_ptr<PartCopies> copies_;
  std::vector<ParameterServerActor> shards_;
  std::vector<TrainerActor> trainers_;
  std::vector<TakerActor> takers_;
  std::vector<caf::strong_actor_ptr> own_;
  uint32_t moments_missing_ = 0;
  bool ready_ = false;
};

}  // namespace

DeputyActor::behavior_type deputy(DeputyActor::pointer self, std::shared_ptr<const NodeParts> node,
                                  PartOrder order, ConductorActor conductor) {
  auto part = std::make_shared<Deputy>(self, std::move(node), std::move(order), conductor);
  self->attach_functor([part](const caf::error&) { part->close(); });
  self->set_down_handler([self](const caf::down_msg&) {
    self->quit(caf::exit_reason::user_shutdown);  // the conductor's
  });
  return {
      [=](const GiveUnit& unit) { part->give(unit); },
      [=](const ApplyShard& order) { part->to_shard(order.shard, to_apply(order)); },
      [=](const CloseShard& order) {
        RoundClose close{{order.step}, order.steps, {}};
        for (size_t i = 0; i < std::min(order.attempts.size(), order.shares.size()); i++)
          close.counted.push_back({order.attempts[i], order.shares[i]});
        part->to_shard(order.shard, Close{std::move(close)});
      },
      [=](const SkipShard& order) { part->to_shard(order.shard, Skip{{order.step}}); },
      [=](const CopyShard& order) { part->copy(order); },
      [=](const HeldBy& held) { part->held_by(held); },
      [=](const MakeCopy& copy) {
        part->to_shard(copy.shard, SendWeights{copy.to, true});
      },
      [=](const AddPeer& peer) { part->add_peer(peer); },
      [=](const DropPeer& peer) { part->drop_peer(peer.node); },
      [=](const EndPart&) { self->quit(caf::exit_reason::normal); },
      [=](const Begin&) { part->begin(); },
      [=](const WorkDone& done) { part->work_done(done); },
      [=](const WorkDropped&) { part->pump(); },
      [=](const TrainerFailed& failed) { part->trainer_failed(failed); },
      [=](Gathered& gathered) { part->gathered(gathered); },
      [=](const Displaced& here) {
        self->send(conductor, DisplacementHere{here.shard.value, here.step.value, here.attempt});
      },
      [=](const ShardReady& ready) { part->shard_ready(ready); },
      [=](const LocalApplied& applied) { part->local_applied(applied); },
      [=](const LocalDisplaced& displaced) { part->local_displaced(displaced); },
      [=](const ShardFailed& failed) { part->fail(failed.error); },
      [=](const StateCopied& copied) { part->copied(copied.part); },
      [=](const WeightsCopied& copied) { part->copied(copied.part); },
      [](const TrainerJoined&) {},
      [](const CheckpointWritten&) {},
      [](const Hold&) {},
      [=](const Tick&) { part->look(); },
      [=](const DataHere& data) { part->data_here(data); },
      [=](WeightsHere& here) { part->weights_here(here); },
      [=](GradientHere& here) { part->gradient_here(here); },
      [=](const MomentsHere& here) { part->moments_here(here); },
      [=](const CopyHere& copy) { part->copy_here(copy); },
      [=](const PeerGone& gone) { part->peer_gone(gone); },
      [=](const PeerMet& met) { part->peer_met(met); },
  };
}

}  // namespace fastserve
