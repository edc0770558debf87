// How a simulated node computes a unit of an exact job: passes that begin before all weights are
// there and push before they end, and actors that wait for each other at the gate. Follows
// train/gradient_worker.h, actors/trainer.cc, parameter_server.cc and taker.cc.
#pragma once

#include "simulated_part.h"

namespace fastserve::simulated {

inline void Part::to_mailbox(Mailbox& box, std::function<bool()> what) {
  box.waiting.push_back(std::move(what));
  if (!box.blocked) drain(box);
}

inline void Part::drain(Mailbox& box) {
  while (!box.waiting.empty() && !ended_) {
    box.blocked = !box.waiting.front()();
    if (box.blocked)
      return node_.world.post(node_.process, box.patience.next(node_.world),
                              [this, self = shared_from_this(), &box] { drain(box); });
    box.patience = {};
    box.waiting.pop_front();
  }
}

inline void Part::to_shard(uint32_t shard, Channel& channel, std::function<bool()> what) {
  later(channel,
        [this, shard, what = std::move(what)] { to_mailbox(shards_[shard].mailbox, what); });
}

/// Brings an own range to the next step.
inline void Part::update(uint32_t index, StepId step, std::function<void()> what) {
  if (!built_ || shards_[index].owned == nullptr) return;
  to_shard(index, shards_[index].from_deputy, [=, this] {
    const StepId next{step.value + 1};
    if (!gate_.may_write(index, next)) return false;
    gate_.enter_write(index, next);
    what();
    gate_.leave_write(index);
    ready(index, step);
    return true;
  });
}

/// Of a microbatch.
inline Nanoseconds Part::some_time() {
  return Nanoseconds(static_cast<int64_t>(
      node_.pace * static_cast<double>(node_.world.delay(500us, 4ms).count())));
}

inline void Part::begin_pass(uint32_t index, WorkItem item) {
  Trainer& trainer = trainers_[index];
  trainer.pass = {};
  trainer.pass.item = std::move(item);
  Claim& claim = trainer.pass.item.claim;
  if (claim != nullptr && claim->exchange(true)) {
    trainer.pass.done = GradientWorker::Done{true, false, {}, nullptr};
    return end_pass(index);
  }
  claim = nullptr;  // the worker is not to find it raised
  // What it asks for and tells is that of one microbatch, the first or the last.
  const uint32_t others = trainer.pass.item.subtree.count - 1;
  const bool first = node_.world.chance(0.5);
  node_.world.post(node_.process, first ? 0ns : others * some_time(),
                   [this, self = shared_from_this(), index] {
                     if (!ended_) read_on(index);
                   });
}

/// Forward: one range after another, as they come.
inline void Part::read_on(uint32_t index) {
  Pass& pass = trainers_[index].pass;
  const auto again = [&](Nanoseconds after) {
    node_.world.post(node_.process, after, [this, self = shared_from_this(), index] {
      if (!ended_) read_on(index);
    });
  };
  const Broken& broken = node_.common.broken;
  while (pass.held < ranges_.size() && !broken.units_before_weights) {
    const auto entry = gate_.try_read(pass.item.weights, pass.held);
    if (entry == WeightsGate::Entry::kNotYet ||
        (entry == WeightsGate::Entry::kNever && broken.overtaken_stay))
      return again(pass.patience.next(node_.world));
    if (entry == WeightsGate::Entry::kNever) {
      pass.done = GradientWorker::Done{false, true, {}, nullptr};
      return end_pass(index);
    }
    pass.held++;
    pass.patience = {};
    if (node_.world.chance(0.3)) return again(some_time() / 8);
  }
  // What it reads it may read at the beginning or at the end of its time.
  const auto compute = [this, index] {
    Pass& at = trainers_[index].pass;
    at.done = trainers_[index].worker->compute(
        at.item,
        [&at](const GradientHandle& sum, size_t from) { at.finished.emplace_back(sum, from); });
  };
  const bool early = node_.world.chance(0.5);
  if (early) compute();
  node_.world.post(node_.process, some_time(),
                   [this, self = shared_from_this(), index, early, compute] {
                     if (ended_) return;
                     if (!early) compute();
                     go_back(index);
                   });
}

/// Backward: what is final goes out, while the rest is still being computed.
inline void Part::go_back(uint32_t index) {
  Pass& pass = trainers_[index].pass;
  if (pass.finished.empty()) return end_pass(index);
  const auto [sum, from] = std::move(pass.finished.front());
  pass.finished.pop_front();
  const auto next = [&] { return static_cast<uint32_t>(ranges_.size() - 1 - pass.pushed); };
  for (; pass.pushed < ranges_.size() && ranges_[next()].begin >= from; pass.pushed++)
    push_later(index, next(), pass.item, sum);
  node_.world.post(node_.process, some_time() / 8, [this, self = shared_from_this(), index] {
    if (!ended_) go_back(index);
  });
}

inline void Part::end_pass(uint32_t index) {
  Pass& pass = trainers_[index].pass;
  gate_.leave_read(pass.held);
  finish(index, pass.item, *pass.done);
  trainers_[index].busy = false;
  pass = {};
  run_next(index);
}

inline void Part::push_later(uint32_t trainer, uint32_t shard, const WorkItem& item,
                             GradientHandle sum) {
  to_shard(shard, trainers_[trainer].to_shards[shard], [=, this] {
    push_own(shard, item.step, item.subtree, item.whole, sum);
    return true;
  });
}

}  // namespace fastserve::simulated
