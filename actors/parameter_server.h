// The parameter-server actor: sums gradients for its range of the weights and updates them.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "actors/messages.h"
#include "base/log.h"
#include "train/turns.h"
#include "train/weights_gate.h"

namespace fastserve {

/// What a parameter server needs beside its shard.
struct ParameterServerParts {
  std::shared_ptr<ParameterShard> shard;
  WeightsGate* gate = nullptr;  ///< outlives the actor
  Turns* turns = nullptr;       ///< the same: first layers are brought to the next step first
  /// Where other nodes read these weights: called after each step and skip with the step that the
  /// weights are at, and with one peer alone when it has joined. May be empty.
  std::function<void(StepId at, std::span<const float> weights, const std::string* only)> publish;
  Log log;
  /// Where another node may come to hold the shard as well. May be empty.
  std::function<void(std::shared_ptr<const ShardState> state, const std::string& to)> send_state{};
};

ParameterServerActor::behavior_type parameter_server(ParameterServerActor::pointer self, ShardId id,
                                                     ParameterServerParts parts,
                                                     CoordinatorActor coordinator);

}  // namespace fastserve
