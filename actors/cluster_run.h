// One job on its way through incarnations, from checkpoint to checkpoint. For actors/ alone.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "actors/cluster_coordinator.h"
#include "actors/node_table.h"

namespace fastserve {

class TrainingRun {
 public:
  struct Around {
    caf::actor_system* actors;
    LaneHub* hub;
    std::shared_ptr<NodeTable> nodes;
    const CancelFlag* closing;
    const Clock* clock;
    Log log;
    std::function<uint64_t()> next_incarnation;
  };
  TrainingRun(Around around, TrainingSystem::Config config, std::string id,
              std::function<void(const ClusterRun&)> changed);
  ~TrainingRun();

  Result<TrainOutcome> run();

 private:
  Result<TrainOutcome> run_to_the_end();
  Status open();
  Status load_newest();
  void start_writer();
  Status first_weights();
  /// Nodes to begin with; empty: the job was cancelled while none were there.
  std::vector<JobNode> wait_for_nodes();
  Result<TrainOutcome> incarnation(std::vector<JobNode> nodes);
  std::shared_ptr<ConductorParts> conductor_parts(std::vector<JobNode> nodes);
  bool cancelled() const;
  void settle_writer();
  void say(const std::string& waiting_for);

  Around around_;
  TrainingSystem::Config config_;
  std::string id_;
  std::function<void(const ClusterRun&)> changed_;
  ClusterRun told_;

  TrainPlan plan_;
  uint64_t windows_ = 1;
  uint32_t evaluation_chunks_ = 0;
  int64_t evaluation_counted_ = 0;
  std::shared_ptr<CheckpointDirectory> checkpoints_;
  std::shared_ptr<LedgerFile> ledger_;
  CheckpointHeader header_;
  CheckpointWriterActor writer_;
  PieceCollectorActor collector_;  // the writer, when nodes keep the checkpoints
  std::shared_ptr<const std::string> train_file_, validation_file_;
  JobState state_;
  std::shared_ptr<const std::vector<float>> weights_, m_, v_, best_;
  std::atomic<int64_t> reached_{0};  // steps done, in any incarnation
};

}  // namespace fastserve
