// Models on their way to be served: an engine for each, its weights still to come.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actors/serving_system.h"
#include "serve/engine_group.h"
#include "serve/model_turns.h"

namespace fastserve {

struct BegunModels {
  std::vector<ServingSystem::LoadedModel> models;
  std::optional<ModelTurns> turns;  ///< with Config::turns, when not all of them are there
};

/// All models, or with Config::turns those that fit together, and the others' engines without a
/// decoder. `device` must outlive them. `stop` ends a load.
Result<BegunModels> begin_models(const ServingSystem::Config& config, Device& device,
                                 const std::shared_ptr<const CancelFlag>& stop);

/// What Config::limits come to, with Config::max_queue.
SchedulerLimits limits_of(const ServingSystem::Config& config);

/// What the log says of them.
std::string loaded_line(const ServedModel& info, const Decoder& decoder);
std::string turn_line(const std::vector<std::string>& names, const EngineGroup::Turn& turn,
                      const EngineGroup& engines, Nanoseconds took);

}  // namespace fastserve
