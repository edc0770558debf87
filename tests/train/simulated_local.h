// What a simulated node's part does in a job that is not exact: follows actors/local_server.cc,
// loose_server.cc and local_part.h.
#pragma once

#include "simulated_part.h"

namespace fastserve::simulated {

inline void Conductor::check_ahead(const WorkItem& item) {
  const Consistency& wanted = around_.common->spec.consistency;
  const auto most = static_cast<uint64_t>(state().steps_done + wanted.bound);
  if (wanted.kind == Consistency::Kind::kStale && item.step.value > most)
    world().trouble = "a trainer is further ahead than it may be";
}

inline bool Part::apart() const { return !node_.common.spec.consistency.exact(); }

inline void Part::build_apart(uint32_t i) {
  const TrainSpec& spec = node_.common.spec;
  if (spec.consistency.local())
    shards_[i].local = std::make_unique<LocalRange>(backend_, gate_, *replica_, i, spec, owns(i));
  else
    shards_[i].loose = std::make_unique<LooseRange>(
        backend_, gate_, *replica_, i, spec, static_cast<uint32_t>(node_.common.plan.microbatches),
        owns(i));
  moments_missing_ +=
      order_.step.value > 0 && !order_.joining && (spec.consistency.local() || owns(i));
}

inline void Part::restore(Shard& shard, const std::vector<float>& m, const std::vector<float>& v) {
  const auto updates = static_cast<int64_t>(order_.step.value);
  if (shard.local)
    shard.local->restore(m, v, updates);
  else
    shard.loose->restore(m, v, updates);
}

inline void Part::open(StepId whole) {
  for (Shard& shard : shards_)
    if (shard.local)
      shard.local->open(whole);
    else
      shard.loose->open(LooseRange::segment_of(whole));
}

inline void Part::give_apart(WorkItem item) {
  if (node_.common.spec.consistency.loose()) item.weights = LooseRange::version(item.step);
  if (item.kind == WorkItem::Kind::kGradient)
    carry_out(rounds_->give(item));
  else
    work_->give(item);
}

inline void Part::push_apart(uint32_t index, StepId step, Subtree subtree, Subtree whole,
                             GradientHandle sum) {
  Shard& shard = shards_[index];
  const Subtree piece{subtree.first - whole.first, subtree.count};
  const auto squares = shard.local ? shard.local->add(step, piece, std::move(sum))
                                   : shard.loose->add(step, piece, std::move(sum));
  if (squares)
    to_rounds(index, [=](LocalRounds& rounds) { return rounds.gathered(index, step, *squares); });
}

inline void Part::take_apart(const std::string& peer, const Parcel& parcel) {
  Shard& shard = shards_[parcel.shard];
  if (shard.local) return shard.local->take(parcel.step, parcel.floats);
  shard.loose->take(peer == kCoordinator ? LooseRange::version(parcel.step) : parcel.step,
                    parcel.floats);
}

inline void Part::gradient_here(const std::string& peer, const Parcel& parcel,
                                GradientHandle values) {
  if (shards_[parcel.shard].local)
    displacement_here(parcel.shard, parcel.step, parcel.subtree.first, std::move(values));
  else
    apply_loose(parcel.shard, peer, parcel.step, parcel.subtree, std::move(values));
}

inline std::span<const float> Part::weights_of(const Shard& shard) {
  return shard.local ? shard.local->outer().weights() : shard.loose->weights();
}
inline StepId Part::version_of(const Shard& shard, const std::string* only) {
  if (shard.local) return shard.local->outer().step();
  return only != nullptr ? shard.loose->version_for(*only) : shard.loose->met_version();
}
inline std::shared_ptr<const ShardState> Part::snapshot_of(const Shard& shard) {
  return shard.local ? shard.local->snapshot() : shard.loose->snapshot();
}

inline void Part::to_rounds(uint32_t shard, std::function<LocalRounds::Orders(LocalRounds&)> what) {
  later(shards_[shard].to_deputy, [this, what = std::move(what)] {
    tell([this, what] {
      carry_out(what(*rounds_));
      pump();
    });
  });
}

inline void Part::carry_out(const LocalRounds::Orders& orders) {
  const auto all = [this](auto what) {
    for (uint32_t i = 0; i < shards_.size(); i++)
      later(shards_[i].from_deputy, [i, what] { what(i); });
  };
  const auto each = [this, all](auto what) {
    all([this, what](uint32_t i) { what(i, *shards_[i].local); });
  };
  for (const LocalRounds::Order& order : orders) {
    if (const auto* begin = std::get_if<LocalRounds::Begin>(&order)) {
      all([this, begin = *begin](uint32_t i) {
        if (shards_[i].local)
          shards_[i].local->begin(begin.round, begin.microbatches);
        else
          shards_[i].loose->begin(begin.round, begin.microbatches);
      });
    } else if (const auto* push = std::get_if<LocalRounds::Push>(&order)) {
      all([this, push = *push](uint32_t i) { send(i, push); });
    } else if (const auto* apply = std::get_if<LocalRounds::Apply>(&order)) {
      each([this, apply = *apply](uint32_t i, LocalRange& range) {
        if (range.apply(apply.order))
          to_rounds(i, [=](LocalRounds& rounds) { return rounds.applied(i, apply.order.step); });
      });
    } else if (const auto* skip = std::get_if<LocalRounds::Skip>(&order)) {
      each([this, skip = *skip](uint32_t i, LocalRange& range) {
        if (range.skip(skip.step))
          to_rounds(i, [=](LocalRounds& rounds) { return rounds.applied(i, skip.step); });
      });
    } else if (const auto* displace = std::get_if<LocalRounds::Displace>(&order)) {
      each([this, order = *displace](uint32_t i, LocalRange&) { this->displace(i, order); });
    } else {
      to_conductor(
          [name = node_.name,
           unit = std::get<LocalRounds::Done>(order).unit](Conductor& conductor) {
            conductor.unit_done(name, unit.round, unit.unit, unit.losses);
          },
          true);
    }
  }
}

inline void Part::displace(uint32_t index, const LocalRounds::Displace& order) {
  Shard& shard = shards_[index];
  GradientHandle slice = shard.slices->take().value();
  const std::span<float> values(slice->data(), slice->elements());
  if (!shard.local->displace(order.round, values)) return;
  if (owns(index))
    displacement_here(index, order.round, order.attempt, slice);
  else
    node_.send(order_.owners[index],
               {Tensor::kGradient,
                order_.job,
                order.round,
                index,
                {order.attempt, order.share},
                values,
                {},
                slice},
               index);
  if (node_.common.broken.arrivals_presumed)
    to_conductor(
        [=](Conductor& conductor) { conductor.displaced(index, order.round, order.attempt); });
  to_rounds(index, [=](LocalRounds& rounds) { return rounds.displaced(index, order.round); });
}

inline void Part::displacement_here(uint32_t index, StepId round, uint32_t attempt,
                                    GradientHandle values) {
  if (!shards_[index].local->is_open()) return;
  const auto added = shards_[index].local->outer().add(round, attempt, std::move(values));
  if (!added.ok()) node_.world.trouble = added.error().message();
  if (added.ok() && *added == OuterShard::Arrival::kNew) arrived_here(index, round, attempt);
}

inline void Part::arrived_here(uint32_t index, StepId step, uint32_t name) {
  later(shards_[index].to_deputy, [=, this] {
    tell([=, this] {
      to_conductor([=](Conductor& conductor) { conductor.displaced(index, step, name); }, true);
    });
  });
}

inline void Part::send(uint32_t index, const LocalRounds::Push& order) {
  Shard& shard = shards_[index];
  GradientHandle slice = shard.slices->take().value();
  const std::span<float> values(slice->data(), slice->elements());
  if (!shard.loose->take_gradient(order.step, order.scale, values)) return;
  if (owns(index))
    apply_loose(index, "", order.step, order.run, slice);
  else
    node_.send(order_.owners[index],
               {Tensor::kGradient, order_.job, order.step, index, order.run, values, {}, slice},
               index);
  if (node_.common.broken.arrivals_presumed)
    to_conductor(
        [=](Conductor& conductor) { conductor.displaced(index, order.step, order.run.first); });
  to_rounds(index, [=](LocalRounds& rounds) { return rounds.displaced(index, order.step); });
}

inline void Part::apply_loose(uint32_t index, const std::string& peer, StepId step, Subtree run,
                              GradientHandle gradient) {
  if (!shards_[index].loose->is_open()) return;
  const auto applied = shards_[index].loose->apply(peer, step, run, std::move(gradient));
  if (!applied.ok()) node_.world.trouble = applied.error().message();
  if (!applied.ok() || *applied == LooseRange::Applied::kLate) return;
  if (*applied == LooseRange::Applied::kNew) {
    node_.world.applied[{order_.job, index}] += run.count;
    arrived_here(index, step, run.first);
  }
  if (peer.empty())
    later(shards_[index].to_deputy, [this] { tell([this] { look(); }); });
  else
    publish(index, &peer);
}

/// Each microbatch has counted once.
inline void Part::check_counted(uint32_t index, const RoundClose& order) {
  const auto microbatches = static_cast<uint64_t>(node_.common.plan.microbatches);
  if (shards_[index].loose) {
    const auto applied = std::exchange(node_.world.applied[{order_.job, index}], 0);
    if (applied != order.steps * microbatches)
      node_.world.trouble = "a shard has applied more or less than the segment";
    return;
  }
  uint64_t shares = 0;
  std::string counted;
  for (const auto& one : order.counted) {
    shares += one.share;
    counted += std::to_string(one.attempt) + " ";
  }
  const auto key = std::pair(order_.job, order.step);
  const auto [at, first] = node_.world.counted.try_emplace(key, counted);
  if (at->second != counted || shares != microbatches)
    node_.world.trouble = "shards count different displacements";
}

inline void Part::close_round(uint32_t index, const RoundClose& order) {
  if (!built_ || !owns(index)) return;
  later(shards_[index].from_deputy, [=, this] {
    check_counted(index, order);
    const Status status = shards_[index].local ? shards_[index].local->close(order)
                                               : shards_[index].loose->close(order);
    if (!status.ok()) {
      node_.world.trouble = status.error().message();
      return;
    }
    publish(index, nullptr);
    later(shards_[index].to_deputy, [=, this] {
      tell([=, this] {
        to_conductor([=, from = from_here()](
                         Conductor& conductor) { conductor.applied(from, index, order.step); },
                     true);
        look();
      });
    });
  });
}

}  // namespace fastserve::simulated
