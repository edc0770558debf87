// A shard's state as one tensor of a lane. For actors/ alone.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "net/bulk_lane.h"
#include "train/parameter_shard.h"

namespace fastserve {

/// Weights, m and v, one after another; what is empty is left out.
inline std::vector<BulkSource> sources_of(const std::shared_ptr<const ShardState>& state) {
  std::vector<BulkSource> parts;
  for (const auto* run : {&state->weights, &state->m, &state->v})
    if (!run->empty()) parts.push_back({std::as_bytes(std::span(*run)), state});
  return parts;
}

/// Room for it, whose owner is the ShardState that it becomes.
inline BulkPlace place_state(const ParameterShard::Range& range, StepId step,
                             bool weights_alone = false) {
  auto state = std::make_shared<ShardState>();
  state->offset = range.begin;
  state->step = step;
  BulkPlace place;
  for (auto* run : {&state->weights, &state->m, &state->v}) {
    if (weights_alone && run != &state->weights) break;
    run->resize(range.end - range.begin);
    place.parts.push_back(std::as_writable_bytes(std::span(*run)));
  }
  place.owner = std::move(state);
  return place;
}

}  // namespace fastserve
