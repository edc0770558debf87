// What the actors of a training job say to each other. For actors/*.cc only: CAF shows here.
//
// All of them live in one process, so messages carry handles and are never serialised.
#pragma once

#include <caf/all.hpp>
#include <memory>
#include <string>
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
  Subtree whole;  // as WorkItem's
  GradientHandle sum;
  std::string peer;  // the node that it came from; empty: this one. From others, with local steps,
                     // the displacement of a round, and subtree.first is its attempt
  float scale = 1;   // as WorkItem's
};
struct Apply {
  ApplyOrder order;
};
struct Skip {
  StepId step;
};
struct Close {  // of local steps
  RoundClose order;
};
struct CopyState {   // answered with StateCopied
  int64_t step = 0;  // steps done: names the checkpoint
};
struct CopyWeights {  // answered with WeightsCopied
  enum class Of : uint8_t { kBest, kFinal, kFinalBest };
  Of of = Of::kBest;
  int64_t step = 0;
};
struct SendWeights {   // to a node that has joined, or, from who has come to lead, to all
  std::string peer;    // empty: all
  bool state = false;  // not the weights, but all that is held, to one that is to hold it, too
};

// To the checkpoint writer.
struct WriteCheckpoint {
  JobState state;
  std::vector<std::shared_ptr<const ShardState>> parts;
  std::shared_ptr<const std::vector<float>> best;  // null: none yet
  // When nodes keep the checkpoint, and neither parts nor best say anything:
  uint64_t incarnation = 0;
  bool has_best = false;
};

struct Settle {};

// Between a coordinator and its conductor: a hold between two steps.
struct Hold {
  bool on = true;  // false: it has been made use of
};

// To the coordinator.
struct Begin {};
struct WorkDone {
  TrainerId trainer;
  uint64_t round;
  uint32_t unit;
  std::vector<double> losses;
};
struct WorkDropped {};  // the job is cancelled, or the step over, and the trainer has noticed
struct TrainerFailed {
  TrainerId trainer;
  Error error;
};
struct Gathered {
  ShardId shard;
  StepId step;
  std::vector<double> squares;
};
struct Displaced {
  ShardId shard;
  StepId step;  // that the round began with
  uint32_t attempt;
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
struct WeightsCopied {
  std::shared_ptr<const ShardState> part;  // without m and v
};
struct CheckpointWritten {
  std::shared_ptr<const Status> status;
};
struct Tick {};
struct PeerGone {  // the bulk lane to a peer has closed
  std::string peer;
  Error why;
};

}  // namespace fastserve::messages

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Work)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::PushGradient)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Apply)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Skip)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Close)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Displaced)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::CopyState)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Hold)
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
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::CopyWeights)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::SendWeights)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::WeightsCopied)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::PeerGone)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Settle)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Tick)

namespace fastserve {

using TrainerActor = caf::typed_actor<caf::reacts_to<messages::Work>>;
using ParameterServerActor =
    caf::typed_actor<caf::reacts_to<messages::PushGradient>, caf::reacts_to<messages::Apply>,
                     caf::reacts_to<messages::Close>, caf::reacts_to<messages::Skip>,
                     caf::reacts_to<messages::CopyState>, caf::reacts_to<messages::CopyWeights>,
                     caf::reacts_to<messages::SendWeights>>;
namespace messages {
struct TrainerJoined {  // to the coordinator; the trainer's id is its place in the order of joining
  TrainerActor trainer;
};
}  // namespace messages
}  // namespace fastserve
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::TrainerJoined)
namespace fastserve {

/// Answers a WriteCheckpoint's sender with CheckpointWritten. Settle is answered when all that came
/// before it has been written.
using CheckpointWriterActor = caf::typed_actor<caf::reacts_to<messages::WriteCheckpoint>,
                                               caf::replies_to<messages::Settle>::with<bool>>;
using CoordinatorActor =
    caf::typed_actor<caf::reacts_to<messages::Begin>, caf::reacts_to<messages::WorkDone>,
                     caf::reacts_to<messages::WorkDropped>, caf::reacts_to<messages::TrainerFailed>,
                     caf::reacts_to<messages::Gathered>, caf::reacts_to<messages::Displaced>,
                     caf::reacts_to<messages::ShardReady>, caf::reacts_to<messages::ShardFailed>,
                     caf::reacts_to<messages::StateCopied>, caf::reacts_to<messages::WeightsCopied>,
                     caf::reacts_to<messages::TrainerJoined>,
                     caf::reacts_to<messages::CheckpointWritten>, caf::reacts_to<messages::Hold>,
                     caf::reacts_to<messages::Tick>>;

}  // namespace fastserve
