// What the actors of a training job say to each other. For actors/*.cc only: CAF shows here.
//
// All of them live in one process, so messages carry handles and are never serialised.
#pragma once

#include <caf/all.hpp>
#include <memory>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "train/checkpoint.h"
#include "train/job.h"
#include "train/parameter_shard.h"

namespace fastserve::messages {

// To a trainer.
struct Work {
  WorkItem item;
};

// To a parameter server.
struct PushGradient {
  StepId step;
  Subtree subtree;
  GradientHandle sum;
};
struct Apply {
  ApplyOrder order;
};
struct Skip {
  StepId step;
};
struct CopyState {};

// To the checkpoint writer.
struct WriteCheckpoint {
  JobState state;
  std::vector<std::shared_ptr<const ShardState>> parts;
  std::shared_ptr<const std::vector<float>> best;  // null: none yet
};

// To the coordinator.
struct Begin {};
struct WorkDone {
  TrainerId trainer;
  uint64_t round;
  uint32_t unit;
  std::vector<double> losses;
};
struct WorkDropped {};  // the job is cancelled, and the trainer has noticed
struct TrainerFailed {
  TrainerId trainer;
  Error error;
};
struct Gathered {
  ShardId shard;
  StepId step;
  std::vector<double> squares;
};
struct ShardReady {
  ShardId shard;
  StepId step;
};
struct ShardFailed {
  Error error;
};
struct StateCopied {
  std::shared_ptr<const ShardState> part;
};
struct CheckpointWritten {
  std::shared_ptr<const Status> status;
};
struct Tick {};

}  // namespace fastserve::messages

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Work)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::PushGradient)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Apply)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Skip)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::CopyState)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::WriteCheckpoint)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Begin)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::WorkDone)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::WorkDropped)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::TrainerFailed)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Gathered)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::ShardReady)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::ShardFailed)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::StateCopied)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::CheckpointWritten)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Tick)

namespace fastserve {

using TrainerActor = caf::typed_actor<caf::reacts_to<messages::Work>>;
using ParameterServerActor =
    caf::typed_actor<caf::reacts_to<messages::PushGradient>, caf::reacts_to<messages::Apply>,
                     caf::reacts_to<messages::Skip>, caf::reacts_to<messages::CopyState>>;
using CheckpointWriterActor = caf::typed_actor<caf::reacts_to<messages::WriteCheckpoint>>;
using CoordinatorActor =
    caf::typed_actor<caf::reacts_to<messages::Begin>, caf::reacts_to<messages::WorkDone>,
                     caf::reacts_to<messages::WorkDropped>, caf::reacts_to<messages::TrainerFailed>,
                     caf::reacts_to<messages::Gathered>, caf::reacts_to<messages::ShardReady>,
                     caf::reacts_to<messages::ShardFailed>, caf::reacts_to<messages::StateCopied>,
                     caf::reacts_to<messages::CheckpointWritten>, caf::reacts_to<messages::Tick>>;

}  // namespace fastserve
