// What a simulated node's part does: see simulated_node.h.
#pragma once

#include "simulated_conductor.h"

namespace fastserve::simulated {

inline Part::Part(Node& node, Order order, LinkEnd control)
    : order_(std::move(order)), control_(std::move(control)), node_(node), held_(node.name) {
  held_.set(order_.holders);
  ranges_ = ParameterShard::ranges(backend_, static_cast<int>(order_.owners.size()));
}

inline bool Part::owns(uint32_t shard) const { return held_.holds(shard); }

inline Teller Part::from_here() const { return {node_.name, order_.number}; }

inline void Part::tell(Call call) {
  if (ended_) return;
  mailbox_.push_back(std::move(call));
  if (draining_) return;
  draining_ = true;
  while (!mailbox_.empty() && !blocked_ && !ended_) {
    const Call next = std::move(mailbox_.front());
    mailbox_.pop_front();
    next();
  }
  draining_ = false;
}

inline void Part::later(Channel& channel, Call call) {
  node_.world.tell(channel, node_.process, [self = shared_from_this(), call = std::move(call)] {
    if (!self->ended_) call();
  });
}

inline void Part::to_conductor(std::function<void(Conductor&)> say, bool repeatable) {
  control_.send(
      [conductor = order_.conductor, say = std::move(say)] {
        const auto there = conductor.lock();
        if (there && !there->closed()) say(*there);
      },
      repeatable);
}

/// `block`: the deputy does nothing else meanwhile.
inline void Part::wait_until(std::function<bool()> met, std::function<void(bool)> then,
                             bool block) {
  const Nanoseconds until = node_.process->clock.now() + 10s;
  const auto look = std::make_shared<std::function<void()>>();
  if (block) blocked_ = true;
  *look = [this, self = shared_from_this(), met, then, until, block, weak = std::weak_ptr(look)] {
    if (ended_) return;
    const bool done = met();
    if (!done && node_.process->clock.now() < until) {
      node_.world.post(node_.process, 20ms, [again = weak.lock()] { (*again)(); });
      return;
    }
    if (!block) return tell([then, done] { then(done); });
    blocked_ = false;
    then(done);
    tell([] {});
  };
  (*look)();
}

inline bool Part::dial(const std::string& peer) { return node_.dial(node_, peer); }

inline void Part::refuse() { fail(); }

inline void Part::fail() {
  to_conductor([name = node_.name](Conductor& conductor) { conductor.lose(name); });
  close();
}

inline void Part::close() {
  if (ended_) return;
  ended_ = true;
  const std::deque<Call> unheard = std::exchange(mailbox_, {});  // often holds this
  node_.sinks.erase(order_.job);
  std::erase_if(node_.parts, [this](const auto& part) { return part.get() == this; });
}

inline void Part::arrived(const std::string& peer, const Parcel& parcel) {
  // Who sends may have heard before this node that it holds the shard.
  const bool ours = parcel.shard < ranges_.size() && built_ &&
                    (apart() ? owns(parcel.shard) : shards_[parcel.shard].owned != nullptr);
  const auto copied = [&] {
    auto slice = shards_[parcel.shard].slices->take().value();
    std::copy(parcel.floats.begin(), parcel.floats.end(), slice->data());
    return slice;
  };
  if (parcel.shard >= ranges_.size() || !built_) return;
  const auto& range = ranges_[parcel.shard];
  if (parcel.tensor == Tensor::kPiece)
    return keep_piece(parcel.shard, static_cast<int64_t>(parcel.step.value), parcel.piece, false);
  if (parcel.floats.size() != range.end - range.begin) return;
  if (parcel.tensor == Tensor::kGradient) {
    if (!ours) return;
    if (apart())
      return later(shards_[parcel.shard].from_lanes,
                   [this, peer, parcel, slice = copied()] { gradient_here(peer, parcel, slice); });
    to_shard(parcel.shard, shards_[parcel.shard].from_lanes, [this, parcel, slice = copied()] {
      push(parcel.shard, parcel.step, parcel.subtree, parcel.subtree, slice);
      return true;
    });
  } else if (parcel.tensor == Tensor::kWeights) {
    const bool any = node_.common.spec.replicas > 0;  // who leads it may have changed
    if (peer != kCoordinator && !any && order_.owners[parcel.shard] != peer) return;
    tell([this, peer, parcel, slice = copied()] {
      Shard& shard = shards_[parcel.shard];
      const auto take = [this, peer, parcel, slice, &shard] {
        Parcel here = parcel;
        here.floats = {slice->data(), slice->elements()};
        if (!take_weights(peer, here)) return false;
        later(shard.from_taker, [this] { tell([this] { look(); }); });
        return true;
      };
      if (apart()) return later(shard.from_deputy, [take] { take(); });
      later(shard.to_taker, [this, take, taker = parcel.shard % takers_.size()] {
        to_mailbox(takers_[taker], take);
      });
    });
  } else if (parcel.tensor == Tensor::kCopy) {
    seeded(parcel, {parcel.floats.begin(), parcel.floats.end()},
           {parcel.more.begin(), parcel.more.end()});
  } else if (peer == kCoordinator && (ours || node_.common.spec.consistency.local())) {
    const std::vector<float> m(parcel.floats.begin(), parcel.floats.end());
    const std::vector<float> v(parcel.more.begin(), parcel.more.end());
    tell([=, this] {
      Shard& shard = shards_[parcel.shard];
      if (apart())
        restore(shard, m, v);
      else if (!node_.common.broken.moments_forgotten)
        shard.owned->restore_range(m, v);
      moments_missing_ -= moments_missing_ > 0;
      look();
    });
  }
}

/// False: not yet.
inline bool Part::take_weights(const std::string& peer, const Parcel& parcel) {
  if (apart()) {
    take_apart(peer, parcel);
    return true;
  }
  const bool any_order = node_.common.broken.weights_in_any_order;
  if (!any_order && !replica_->behind(parcel.shard, parcel.step)) return true;
  if (!gate_.may_write(parcel.shard, parcel.step)) return false;
  if (!any_order) {
    replica_->take(parcel.shard, parcel.step, parcel.floats);
    return true;
  }
  gate_.enter_write(parcel.shard, parcel.step);
  const auto& range = ranges_[parcel.shard];
  std::copy(parcel.floats.begin(), parcel.floats.end(), backend_.masters().data() + range.begin);
  for (size_t i = range.first_tile; i < range.first_tile + range.tiles; i++)
    backend_.refresh(backend_.tiles()[i]);
  gate_.leave_write(parcel.shard);
  replica_->applied(parcel.shard, parcel.step);
  return true;
}

inline void Part::look() {
  if (!built_) return;
  const auto step = ready_ && !apart() ? replica_->newest() : replica_->whole();
  if (!step || moments_missing_ > 0 || !met_all()) return;
  if (apart() && !ready_) open(*step);
  if (apart())
    carry_out(rounds_->weights_ready(*step));
  else
    work_->weights_ready(*step);
  if (!ready_) {
    ready_ = true;
    to_conductor([name = node_.name](Conductor& conductor) { conductor.ready(name); }, true);
  }
  pump();
}

inline void Part::give(const WorkItem& item) {
  if (!built_) return;
  if (trainers_.empty()) return fail();
  if (apart())
    give_apart(item);
  else
    work_->give(item);
  if (node_.common.broken.units_before_weights) work_->weights_ready(item.step);
  pump();
}

inline void Part::pump() {
  for (NodeWork::Piece& piece : work_->hand_out(node_.process->clock.now())) {
    trainers_[piece.trainer].mailbox.push_back(std::move(piece.item));
    run_next(piece.trainer);
  }
}

inline void Part::run_next(uint32_t index) {
  Trainer& trainer = trainers_[index];
  if (trainer.busy || trainer.mailbox.empty()) return;
  trainer.busy = true;
  const WorkItem item = std::move(trainer.mailbox.front());
  trainer.mailbox.pop_front();
  if (!apart()) return begin_pass(index, item);
  const Nanoseconds takes = item.subtree.count * some_time();
  // What it reads of the weights it may read at the beginning or at the end of that time.
  const bool early = node_.world.chance(0.5);
  std::shared_ptr<Result<GradientWorker::Done>> done;
  if (early) done = std::make_shared<Result<GradientWorker::Done>>(trainer.worker->compute(item));
  node_.world.post(node_.process, takes, [this, self = shared_from_this(), index, item, done] {
    if (ended_) return;
    finish(index, item, done ? *done : trainers_[index].worker->compute(item));
    trainers_[index].busy = false;
    run_next(index);
  });
}

inline void Part::finish(uint32_t index, const WorkItem& item,
                         Result<GradientWorker::Done> result) {
  Trainer& trainer = trainers_[index];
  GradientWorker::Done& done = result.value();
  if (done.passed_by) return;
  if (done.dropped) return later(trainer.to_deputy, [this] { tell([this] { pump(); }); });
  if (done.gradient != nullptr)
    for (uint32_t shard = 0; shard < shards_.size() && apart(); shard++)
      // Behind what the deputy has ordered before the trainer was asked.
      later(shards_[shard].from_deputy, [this, shard, item, gradient = done.gradient] {
        push(shard, item.step, item.subtree, item.whole, gradient);
      });
  later(trainer.to_deputy, [this, index, item, losses = done.losses] {
    tell([=, this] { work_done(index, item.round, item.unit, losses); });
  });
}

inline void Part::work_done(uint32_t trainer, uint64_t round, uint32_t piece,
                            const std::vector<double>& losses) {
  const auto unit = work_->done(trainer, round, piece, losses);
  if (unit && apart() && unit->kind == WorkItem::Kind::kGradient)
    carry_out(rounds_->computed(*unit));
  else if (unit)
    to_conductor(
        [name = node_.name, unit = *unit](Conductor& conductor) {
          conductor.unit_done(name, unit.round, unit.unit, unit.losses);
        },
        true);
  pump();
}

/// What a shard does.
inline void Part::push(uint32_t index, StepId step, Subtree subtree, Subtree whole,
                       GradientHandle sum) {
  Shard& shard = shards_[index];
  if (apart()) return push_apart(index, step, subtree, whole, std::move(sum));
  if (shard.owned == nullptr) return;
  const auto added = shard.owned->add(step, subtree, std::move(sum));
  if (!added.ok() || *added != ParameterShard::Added::kComplete) return;
  shard.gathered = true;
  later(shard.to_deputy, [=, this, squares = shard.owned->squares()] {
    tell([=, this] {
      to_conductor([=, from = from_here()](
                       Conductor& conductor) { conductor.gathered(from, index, step, squares); },
                   true);
    });
  });
}

inline void Part::apply(uint32_t index, const ApplyOrder& order) {
  update(index, order.step, [=, this] {
    const bool gathered = std::exchange(shards_[index].gathered, false);
    if (!gathered || shards_[index].owned->step() != order.step)
      node_.world.trouble = "a step is applied that a copy has not got";
    else
      shards_[index].owned->apply(order);
  });
}

inline void Part::skip(uint32_t index, StepId step) {
  update(index, step, [=, this] {
    shards_[index].gathered = false;
    shards_[index].owned->skip(step);
  });
}

inline void Part::ready(uint32_t index, StepId step) {
  publish(index, nullptr);
  later(shards_[index].to_deputy, [=, this] {
    tell([=, this] {
      replica_->applied(index, {step.value + 1});
      to_conductor(
          [=, from = from_here()](Conductor& conductor) { conductor.applied(from, index, step); },
          true);
      look();
    });
  });
}

inline void Part::publish(uint32_t index, const std::string* only) {
  if (!apart() && only == nullptr && !held_.leads(index)) return;
  std::vector<std::string> to = only != nullptr ? std::vector{*only} : peers_;
  std::erase_if(to, [&](const std::string& peer) { return held_.holds(index, peer); });
  const Shard& shard = shards_[index];
  const auto weights = apart() ? weights_of(shard) : shard.owned->weights();
  const StepId step = apart() ? version_of(shard, only) : shard.owned->step();
  const auto copy = std::make_shared<const std::vector<float>>(weights.begin(), weights.end());
  for (const std::string& peer : to)
    node_.send(peer, {Tensor::kWeights, order_.job, step, index, {}, *copy, {}, copy}, index);
}

inline void Part::copy(uint32_t index, Copy what, int64_t step) {
  if (!built_ || !owns(index)) return;
  to_shard(index, shards_[index].from_deputy, [=, this] {
    const Shard& shard = shards_[index];
    const auto state = apart() ? snapshot_of(shard) : shard.owned->snapshot();
    later(shards_[index].to_deputy,
          [=, this] { tell([=, this] { copied(index, what, step, state); }); });
    return true;
  });
}

inline void Part::peer_gone(const std::string& peer) {
  if (peer == kCoordinator) return;  // the conductor's end says so, too
  drop_peer(peer);
  to_conductor(
      [name = node_.name, peer](Conductor& conductor) { conductor.peer_lost(name, peer); });
}

}  // namespace fastserve::simulated

#include "simulated_copies.h"
#include "simulated_keeping.h"
#include "simulated_local.h"
#include "simulated_opening.h"
#include "simulated_pass.h"
