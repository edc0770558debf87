// How a simulated conductor begins an incarnation, and what it does with copies: see
// simulated_conductor.h.
#pragma once

#include "simulated_part.h"

namespace fastserve::simulated {

inline void Conductor::opened(const std::string& node, const PartRef& part) {
  const auto it = members_.find(node);
  if (closed_ || it == members_.end()) return;
  // It may still believe in a lane to who was the coordinator before.
  if (!around_.lane(node).link) {
    const auto again = [self = shared_from_this(), node, part] { self->opened(node, part); };
    return world().post(around_.process, 20ms, again);
  }
  it->second.part = part;
  if (!it->second.joining) return send_weights(it->second);
  if (replicas() > 0)  // it may have been long on its way
    part.tell([holders = held_->holders()](Part& there) { there.held_by(holders); });
  for (auto& [name, other] : members_) {
    if (name == node) continue;
    other.part.tell(
        [node, serves = it->second.node.serves](Part& there) { there.add_peer(node, serves); });
    // What it computes may be for a node that has come since it was ordered to.
    if (replicas() > 0 && !other.part.part.expired())
      part.tell([name, serves = other.node.serves](Part& there) { there.add_peer(name, serves); });
  }
}

inline void Conductor::order(const Known& known, bool joining) {
  Member& member = members_[known.name];
  member.node = known;
  member.joining = joining;
  Order order;
  order.job = around_.job;
  order.step = {static_cast<uint64_t>(around_.from.state.steps_done)};
  order.owners = owners_;
  order.holders = held_->holders();
  order.number = member.number = ++orders_;
  if (joining)
    for (const auto& [name, other] : members_) order.peers.push_back(name);
  else
    for (const Known& other : around_.nodes) order.peers.push_back(other.name);
  order.copies = copies_of_;
  order.trains = known.trains;
  order.joining = joining;
  order.conductor = weak_from_this();
  known.control.send([known, order] {
    const auto node = known.node.lock();
    const LinkEnd back{known.control.link, 1 - known.control.end};
    const auto part = std::make_shared<Part>(*node, order, back);
    node->parts.push_back(part);
    part->tell([part] { part->begin(); });
  });
}

inline void Conductor::send_weights(const Member& member) {
  const auto node = member.node.node;
  for (uint32_t shard = 0; shard < ranges_.size(); shard++) {
    const auto& range = ranges_[shard];
    const auto run = [&](const std::vector<float>& all) {
      return std::span(all).subspan(range.begin, range.end - range.begin);
    };
    const auto send = [&](Tensor tensor, std::span<const float> floats,
                          std::span<const float> more) {
      around_.lane(member.node.name)
          .send(
              [node, parcel = Parcel{tensor,
                                     around_.job,
                                     {uint64_t(around_.from.state.steps_done)},
                                     shard,
                                     {},
                                     floats,
                                     more,
                                     shared_from_this()}] {
                if (const auto there = node.lock()) there->arrived(kCoordinator, parcel);
              },
              false, 1 + shard);
    };
    send(Tensor::kWeights, run(around_.from.weights), {});
    const bool local = around_.common->spec.consistency.local();
    const auto& nodes = held_->holders()[shard];
    const bool holds = std::find(nodes.begin(), nodes.end(), member.node.name) != nodes.end();
    if ((local || holds) && around_.from.state.steps_done > 0)
      send(Tensor::kMoments, run(around_.from.m), run(around_.from.v));
  }
}

inline void Conductor::start() {
  TrainingJob::Setup setup;
  setup.spec = around_.common->spec;
  setup.plan = around_.common->plan;
  setup.shards = static_cast<int>(ranges_.size());
  setup.windows = around_.common->sampler->windows();
  setup.evaluation_chunks = around_.common->evaluation->chunks();
  setup.evaluation_counted = around_.common->evaluation->counted();
  setup.checkpoints = setup.ranges = true;
  setup.clock = &clock();
  LedgerBegin begin = beginning(setup.spec, setup.plan, setup.windows, around_.from.state);
  begin.incarnation = around_.job;
  job_.emplace(std::move(setup), around_.from.state);
  last_ = around_.from;
  committed_ = keep_in(
      around_.ledger, begin, [this](TrainerId id) { return trainers_[id.value].node; }, Log());
  std::vector<TrainerId> all;
  for (auto& [name, member] : members_)
    if (member.node.trains) all.push_back(add_trainer(member));
  tell(job_channel_, [=, this] { trainers_joined(all); });
  job_tick();
}

inline TrainerId Conductor::add_trainer(Member& member) {
  member.trainer = TrainerId{static_cast<uint32_t>(trainers_.size())};
  trainers_.emplace_back(member.part, member.node.name);
  return *member.trainer;
}

inline void Conductor::copied(std::shared_ptr<const ShardState> part) {
  copies_.push_back(std::move(part));
  if (copies_.size() < ranges_.size()) return;
  if (around_.common->node_checkpoints && !ended_) {
    copies_.clear();
    around_.write({copied_state_, {}, {}, {}});
    return carry_out(job_->snapshot_taken());
  }
  Saved saved{copied_state_, {}, {}, {}};
  for (auto* all : {&saved.weights, &saved.m, &saved.v}) all->resize(FakeBackend::kElements);
  for (const auto& copy : copies_) {
    const auto at = static_cast<ptrdiff_t>(copy->offset);
    std::copy(copy->weights.begin(), copy->weights.end(), saved.weights.begin() + at);
    std::copy(copy->m.begin(), copy->m.end(), saved.m.begin() + at);
    std::copy(copy->v.begin(), copy->v.end(), saved.v.begin() + at);
  }
  copies_.clear();
  last_ = saved;
  if (ended_ && !end_) end_ = *ended_;
  if (ended_) return;
  around_.write(std::move(saved));
  carry_out(job_->snapshot_taken());
}

inline void Part::begin() {
  node_.sinks[order_.job] = shared_from_this();
  std::vector<std::string> names{kCoordinator};
  for (const std::string& peer : order_.peers) {
    if (peer == node_.name) continue;
    if (node_.name < peer && !node_.connected(peer) && !dial(peer)) return refuse();
    peers_.push_back(peer);
    if (!order_.joining) names.push_back(peer);
  }
  const auto all = [this, names] {
    return std::all_of(names.begin(), names.end(),
                       [&](const std::string& name) { return node_.connected(name); });
  };
  wait_until(all, [this](bool connected) {
    if (!connected) return refuse();
    build();
    opened();
  });
}

inline void Part::build() {
  const StepLayout layout(static_cast<uint32_t>(node_.common.plan.microbatches));
  gate_.divide(ranges_.size());
  replica_ = std::make_unique<WeightReplica>(backend_, gate_, ranges_);
  takers_.resize(static_cast<size_t>(node_.lanes));
  for (uint32_t i = 0; i < ranges_.size(); i++) {
    Shard& shard = shards_.emplace_back();
    const size_t bytes = (ranges_[i].end - ranges_[i].begin) * sizeof(float);
    shard.slices = std::make_unique<GradientPool>(
        [this, bytes] { return backend_.allocate(bytes); }, ranges_[i].begin);
    if (apart()) {
      build_apart(i);
      continue;
    }
    if (owns(i) && !order_.joining) {
      shard.owned = std::make_unique<ParameterShard>(backend_, ranges_[i], node_.common.spec,
                                                     layout, order_.step);
      moments_missing_ += order_.step.value > 0;
    }
    if (shard.owned == nullptr || node_.common.spec.replicas > 0)
      shard.elsewhere = std::make_unique<UnitSum>(ranges_[i].begin, ranges_[i].end, backend_.ops());
  }
  WeightsGate* const gate = node_.common.broken.units_before_weights ? nullptr : &gate_;
  for (int i = 0; order_.trains && i < node_.lanes; i++) {
    Trainer& trainer = trainers_.emplace_back();
    trainer.to_shards.resize(ranges_.size());
    trainer.worker = std::make_unique<GradientWorker>(
        std::make_unique<RememberingSource>(backend_), *node_.common.sampler,
        &*node_.common.evaluation, pool_, [this] { return ended_; }, gate);
    if (!apart() && gate != nullptr) trainer.worker->wait_by_range(ParameterShard::begins(ranges_));
  }
  work_ = std::make_unique<NodeWork>(static_cast<uint32_t>(std::max<size_t>(1, trainers_.size())));
  if (apart()) rounds_.emplace(node_.common.spec, *work_, ranges_);
  built_ = true;
}

inline void Part::opened() {
  const PartRef me{{control_.link, 1 - control_.end}, weak_from_this()};
  to_conductor([name = node_.name, me](Conductor& conductor) { conductor.opened(name, me); });
}

}  // namespace fastserve::simulated
