// How a simulated job keeps copies of its shards: what the part and the conductor of
// simulated_part.h and simulated_conductor.h do beside what they do without. Follows
// actors/conductor.cc, slice_sender.cc and deputy.cc.
#pragma once

#include "simulated_part.h"

namespace fastserve::simulated {

/// What this node's trainers have: to a slice sender where other nodes hold the shard.
inline void Part::push_own(uint32_t index, StepId step, Subtree subtree, Subtree whole,
                           GradientHandle sum) {
  Shard& shard = shards_[index];
  if (!shard.elsewhere) return push(index, step, subtree, whole, std::move(sum));
  const auto unit = shard.elsewhere->add(step, whole, subtree, std::move(sum));
  if (!unit) return;
  const size_t n = ranges_[index].end - ranges_[index].begin;
  const bool replicated = node_.common.spec.replicas > 0;
  for (const std::string& node : held_.others(index)) {
    // A holder that has met this node, and has not been met: it will not get what counts.
    if (replicated && !node_.connected(node)) tell([=, this] { peer_gone(node); });
    node_.send(
        node,
        {Tensor::kGradient, order_.job, step, index, unit->unit, {unit->data, n}, {}, unit->owner},
        index);
  }
  if (!owns(index)) return;
  auto own = shard.slices->take().value();  // it is summed further, while the other is under way
  std::copy(unit->data, unit->data + n, own->data());
  push(index, step, unit->unit, unit->unit, std::move(own));
}

inline void Part::held_by(const ShardHolders& holders) {
  for (const uint32_t led : held_.set(holders))
    if (built_ && shards_[led].owned != nullptr && !node_.common.broken.promoted_silent)
      to_shard(led, shards_[led].from_deputy, [=, this] {
        publish(led, nullptr);
        return true;
      });
}

/// Sends the state of a shard at a step's border to a node that is to hold it as well.
inline void Part::seed(uint32_t index, const std::string& to) {
  if (!built_ || !owns(index)) return;
  to_shard(index, shards_[index].from_deputy, [=, this] {
    const auto state = shards_[index].owned->snapshot();
    auto moments = std::make_shared<std::vector<float>>(state->m);
    moments->insert(moments->end(), state->v.begin(), state->v.end());
    const auto both =
        std::make_shared<std::pair<decltype(state), decltype(moments)>>(state, moments);
    node_.send(to,
               {Tensor::kCopy, order_.job, state->step, index, {}, state->weights, *moments, both},
               index);
    return true;
  });
}

inline void Part::seeded(const Parcel& parcel, std::vector<float> weights,
                         const std::vector<float>& moments) {
  const uint32_t index = parcel.shard;
  const StepId step = parcel.step;
  to_shard(index, shards_[index].to_taker, [=, this] {
    Shard& shard = shards_[index];
    // Made already, for a hold that ended when who led was lost: it is told of again.
    if (shard.copied != step) {
      if (shard.copied > step || replica_->past(index, step)) return true;
      if (!gate_.may_write(index, step)) return false;
      if (!replica_->restore(index, step, weights)) return true;
      const StepLayout layout(static_cast<uint32_t>(node_.common.plan.microbatches));
      shard.copied = step;
      shard.owned = std::make_unique<ParameterShard>(backend_, ranges_[index], node_.common.spec,
                                                     layout, step);
      const std::span<const float> both(moments);
      shard.owned->restore_range(both.first(both.size() / 2), both.subspan(both.size() / 2));
      shard.gathered = false;
    }
    later(shard.from_taker, [=, this] {
      tell([=, this] {
        look();
        to_conductor(
            [=, from = from_here()](Conductor& conductor) { conductor.seeded(from, index, step); });
      });
    });
    return true;
  });
}

/// Beside the deputy's other work.
inline void Part::add_peer(const std::string& peer, bool serves) {
  meetings_.insert(peer);
  if (!node_.connected(peer) && node_.name < peer && !dial(peer)) return peer_gone(peer);
  const auto met = [this, peer, serves](bool connected) {
    if (meetings_.erase(peer) == 0) return;
    if (!connected) return peer_gone(peer);
    if (serves) spare_.insert(peer);
    if (std::find(peers_.begin(), peers_.end(), peer) == peers_.end()) peers_.push_back(peer);
    for (uint32_t i = 0; i < shards_.size(); i++)
      if (held_.leads(i))
        to_shard(i, shards_[i].from_deputy, [=, this] {
          if (shards_[i].loose) shards_[i].loose->joined(peer);
          publish(i, &peer);
          return true;
        });
    look();
  };
  wait_until([this, peer] { return node_.connected(peer); }, met, false);
}

/// As in actors/deputy.cc: where it may come to hold shards, it takes part when it has met
/// everybody.
inline bool Part::met_all() {
  if (ready_ || !order_.joining || node_.common.spec.replicas == 0) return true;
  const bool met = meetings_.empty() &&
                   std::all_of(peers_.begin(), peers_.end(),
                               [&](const std::string& peer) { return node_.connected(peer); });
  if (!met)
    node_.world.post(node_.process, 20ms, [this, self = shared_from_this()] {
      if (!ended_) tell([this] { look(); });
    });
  return met;
}

inline bool Conductor::all_copied() const {
  const auto alive = [](const auto& member) {
    const auto node = member.second.node.node.lock();
    return node != nullptr && node->process->alive;
  };
  return job_ && held_->fewest() > 0 && std::all_of(members_.begin(), members_.end(), alive);
}

inline std::vector<std::string> Conductor::able() const {
  std::vector<std::string> nodes;
  for (const auto& [name, member] : members_)
    if (member.ready && member.node.serves) nodes.push_back(name);
  return nodes;
}

inline void Conductor::gathered(const Teller& from, uint32_t shard, StepId step,
                                std::vector<double> squares) {
  if (!job_ || !speaks(from)) return;
  if (around_.common->broken.copies_presumed && held_->leader(shard) == from.node)
    return gathered({shard, step, squares});
  const auto whole = held_->gathered(from.node, shard, step, std::move(squares));
  if (!whole.ok())
    world().trouble = whole.error().message();
  else if (*whole)
    gathered(**whole);
}

inline void Conductor::gathered(const ShardCopies::Gathered& whole) {
  tell(job_channel_,
       [=, this] { carry_out(job_->shard_gathered({whole.shard}, whole.step, whole.squares)); });
}

inline void Conductor::applied(const Teller& from, uint32_t shard, StepId step) {
  if (job_ && speaks(from) && (!exact() || held_->applied(from.node, shard, step)))
    ready({shard, step});
}

inline void Conductor::ready(const ShardCopies::Ready& whole) {
  tell(job_channel_, [=, this] { carry_out(job_->shard_ready({whole.shard}, whole.step)); });
}

inline void Conductor::state_here(std::shared_ptr<const ShardState> part, bool best) {
  if (!job_ || best) return;
  const auto at = std::find_if(ranges_.begin(), ranges_.end(),
                               [&](const auto& range) { return range.begin == part->offset; });
  const auto shard = static_cast<uint32_t>(at - ranges_.begin());
  if (replicas() > 0 && !held_->takes(shard, part->step, best)) return;
  tell(job_channel_, [=, this] { copied(part); });
}

inline void Conductor::lose_copies(const std::string& node) {
  ShardCopies::Loss loss = held_->lose(node);
  if (loss.copies > 0) tell_holders();
  if (!loss.moved.empty()) around_.promoted();
  for (const uint32_t shard : loss.moved)
    if (asked_[shard]) tell(proxies_[shard], [=, this] { ask(shard); });
  for (auto& whole : loss.gathered) gathered(std::move(whole));
  for (const auto& whole : loss.ready) ready(whole);
  maker_->lost(node, loss);
  look_at_hold();
  want_copies();
}

inline void Conductor::tell_holders() {
  for (auto& [name, member] : members_)
    member.part.tell([holders = held_->holders()](Part& there) { there.held_by(holders); });
}

inline void Conductor::want_copies() {
  if (job_ && maker_->wants_hold(able())) tell(job_channel_, [this] { job_->hold_still(); });
}

/// No step is under way.
inline void Conductor::make_copies() {
  for (const auto& seed : maker_->held(able()))
    tell_part(
        seed.from, [to = seed.to](Part& part, uint32_t shard) { part.seed(shard, to); },
        seed.shard);
  look_at_hold();
}

inline void Conductor::seeded(const Teller& from, uint32_t shard, StepId step) {
  if (!speaks(from) || !maker_->made(from.node, shard, step)) return;
  around_.seeded();
  look_at_hold();
}

inline void Conductor::look_at_hold() {
  if (!maker_->over()) return;
  tell_holders();
  tell(job_channel_, [this] { carry_out(job_->go_on()); });
  want_copies();
}

}  // namespace fastserve::simulated
