// How a simulated conductor begins an incarnation, and what it does with copies: see
// simulated_conductor.h.
#pragma once

#include "simulated_part.h"

namespace fastserve::simulated {

inline void Conductor::order(const Known& known, bool joining) {
  Member& member = members_[known.name];
  member.node = known;
  member.joining = joining;
  Order order;
  order.job = around_.job;
  order.step = {static_cast<uint64_t>(around_.from.state.steps_done)};
  order.owners = owners_;
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
    if ((local || owners_[shard] == member.node.name) && around_.from.state.steps_done > 0)
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

}  // namespace fastserve::simulated
