// The coordinator actor: carries events to the TrainingJob and its orders to everyone.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "actors/messages.h"
#include "base/log.h"
#include "train/ledger_file.h"

namespace fastserve {

/// Where a job's outcome is left for whoever waits. Threads: any.
class Completion {
 public:
  /// The first call counts.
  void set(Result<TrainOutcome> outcome);
  /// Blocks until set. The outcome holds all weights, so it is handed over: call once.
  Result<TrainOutcome> wait();
  /// Blocks for at most `timeout`; whether it is set.
  bool wait_for(Nanoseconds timeout);

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Result<TrainOutcome>> outcome_;
};

/// What a coordinator drives. Filled in before it is told to Begin.
struct CoordinatorParts {
  std::unique_ptr<TrainingJob> job;
  /// The weights as they are, or why a device does not give them; empty: they are on other nodes,
  /// and the shards are asked for copies.
  std::function<Result<std::vector<float>>()> weights;
  std::shared_ptr<const std::vector<float>> first_weights;  ///< those begun with, if on other nodes
  std::vector<TrainerActor> trainers;
  std::vector<ParameterServerActor> shards;
  /// Of a cluster's incarnation, when its nodes keep the checkpoints themselves: shards answer
  /// CopyState without floats, KeepBest's CopyWeights not at all, and as the job ends they are
  /// asked for what it ends in. 0: not so.
  uint64_t in_pieces = 0;
  CheckpointWriterActor writer;  ///< may be empty when the job writes no checkpoints
  std::shared_ptr<const std::vector<float>> best;  ///< weights of the best evaluation so far
  std::function<void(const TrainProgress&)> progress;
  std::function<void(const Commit&)> committed;         ///< before the shards hear of it
  std::function<void()> held_still;                     ///< answered with Hold{false}
  std::function<void()> look_at_memory;                 ///< called where a job holds most
  std::function<void(TrainOutcome&)> complete_outcome;  ///< adds what the job cannot know
  Log log;
  std::shared_ptr<Completion> completion;
};

/// `parts` are looked at from Begin on. Monitors trainers and shards; never blocks.
CoordinatorActor::behavior_type coordinator(CoordinatorActor::pointer self,
                                            std::shared_ptr<CoordinatorParts> parts);

/// Writes checkpoints, detached. What a checkpoint counts on is on disk in the `ledger` before it;
/// that may be null.
CheckpointWriterActor::behavior_type checkpoint_writer(
    CheckpointWriterActor::pointer self, std::shared_ptr<CheckpointDirectory> directory,
    CheckpointHeader header, std::shared_ptr<LedgerFile> ledger);

}  // namespace fastserve
