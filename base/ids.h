// Strong ids: a StepId cannot be passed where a ShardId is meant.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace fastserve {

template <class Tag, class Rep = uint64_t>
struct Id {
  Rep value = 0;
  auto operator<=>(const Id&) const = default;
};

using StepId = Id<struct StepTag>;            ///< optimiser step of a job, from 0
using ShardId = Id<struct ShardTag, uint32_t>;
using TrainerId = Id<struct TrainerTag, uint32_t>;
using JobId = Id<struct JobTag>;
using RequestId = Id<struct RequestTag>;      ///< one generate call, unique in a server's life

}  // namespace fastserve

template <class Tag, class Rep>
struct std::hash<fastserve::Id<Tag, Rep>> {
  size_t operator()(fastserve::Id<Tag, Rep> id) const { return std::hash<Rep>{}(id.value); }
};
