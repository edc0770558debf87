// The trainer actor: computes units of a step and pushes partial gradients to the shards.
#pragma once

#include <memory>
#include <vector>

#include "actors/messages.h"
#include "train/gradient_worker.h"

namespace fastserve {

/// Runs detached, since a unit takes milliseconds to minutes. A failure of its device ends it,
/// after a word to the coordinator. Each shard, whose first element is in `begins`, gets the
/// gradient as soon as its range of it is final, those of the last layers first.
TrainerActor::behavior_type trainer(TrainerActor::pointer self, TrainerId id,
                                    std::shared_ptr<GradientWorker> worker,
                                    CoordinatorActor coordinator,
                                    std::vector<ParameterServerActor> shards,
                                    std::vector<size_t> begins);

}  // namespace fastserve
