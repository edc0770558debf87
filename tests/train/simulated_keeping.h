// What a simulated part does with copies of its shards: see simulated_node.h.
#pragma once

#include "simulated_part.h"

namespace fastserve::simulated {

inline void Part::copied(uint32_t shard, Copy what, int64_t step,
                         std::shared_ptr<const ShardState> state) {
  const bool pieces = node_.common.node_checkpoints;
  if (pieces && what == Copy::kBest) return;  // stays in memory
  if (pieces && what == Copy::kState) {
    to_conductor([shard](Conductor& conductor) { conductor.shard_copied(shard); });
    return keep_piece(shard, step, std::move(state), true);
  }
  const auto at = node_.bulk.find(kCoordinator);
  if (at == node_.bulk.end()) return;
  at->second.lane.send(
      [conductor = order_.conductor, state, best = what == Copy::kBest] {
        const auto there = conductor.lock();
        if (there && !there->closed()) there->state_here(state, best);
      },
      false, 1 << 20);
}

/// The keeper: writes, sends the copy, reports.
inline void Part::keep_piece(uint32_t shard, int64_t step, std::shared_ptr<const ShardState> state,
                             bool owner) {
  PieceReport report;
  report.piece = {"job", order_.job, step, ranges_[shard].begin, ranges_[shard].end};
  report.node = node_.name;
  report.owner = owner;
  report.hash = hash_of(*state);
  if (owner && !order_.copies[shard].empty())
    report.copied_to = order_.copies[shard];
  else if (owner && !spare_.empty())
    report.copied_to = *spare_.begin();
  if (!report.copied_to.empty()) {
    Parcel parcel{Tensor::kPiece, order_.job, {uint64_t(step)}, shard, {}, {}, {}, state, state};
    node_.send(report.copied_to, std::move(parcel), 1 << 20);
  }
  World& world = node_.world;
  if (world.chance(0.02)) report.error = Error{ErrorCode::kResourceExhausted, "full", "", ""};
  const auto written = [self = shared_from_this(), report, state] {
    if (!report.error) self->node_.disk->pieces[report.piece] = state;
  };
  const auto tell = [self = shared_from_this(), report] {
    if (!self->ended_)
      self->to_conductor([report](Conductor& conductor) { conductor.kept(report); });
  };
  // A killed actor ends what it is at: a piece may be kept of which nobody hears.
  const Nanoseconds took = world.delay(1ms, world.chance(0.1) ? 3s : 50ms);
  if (node_.common.broken.pieces_presumed) tell();
  world.post(node_.process, took, [self = shared_from_this(), written, tell] {
    written();
    if (!self->node_.common.broken.pieces_presumed) tell();
  });
}

}  // namespace fastserve::simulated
