// The jobs of a cluster: which should run, which do, and what they say.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "actors/cluster_coordinator.h"
#include "api/local_node.h"
#include "store/state_store.h"

namespace fastserve {

/// Runs each job in a thread of its own, over a cluster's nodes.
///
/// What should become of a job (run, be paused, be cancelled) is a record of the state: a
/// coordinator that is started again takes up what should run. The rest is in the jobs' folders, as
/// without a cluster.
/// Threads: any.
class ClusterJobs {
 public:
  struct Around {
    NodeOptions options;  ///< root, log
    Isa isa = Isa::kPortable;
    StateStore* state = nullptr;
    ClusterCoordinator* coordinator = nullptr;
    std::shared_ptr<SharedStore> store;
  };
  explicit ClusterJobs(Around around) : around_(std::move(around)) {}
  /// The coordinator must have been told to stop what runs.
  ~ClusterJobs();

  /// Starts what should run and does not.
  Status take_up();

  /// The job's id, once its data has been read.
  Result<std::string> train(const TrainRequest& request);
  Result<std::vector<ClusterJob>> jobs();
  Result<ClusterJob> job(const std::string& id);
  Status pause(const std::string& id);
  Status resume(const std::string& id);
  Status cancel(const std::string& id);
  Status remove(const std::string& id);
  Result<std::vector<std::string>> log(const std::string& id, uint64_t from, int most);

 private:
  struct Running;
  enum class Wanted { kRunning, kPaused, kCancelled };

  Result<std::string> begin(TrainRequest request);
  void run(const std::shared_ptr<Running>& running, const TrainRequest& request);
  Status want(const std::string& id, Wanted wanted);
  Wanted wanted(const std::string& id) const;
  Status stop(const std::string& id, Wanted wanted);
  Status delete_files(const std::string& id) const;
  ClusterJob described(const JobInfo& info);
  void reap();

  const Around around_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Running>> running_;  // by id
  std::vector<std::shared_ptr<Running>> all_;                // with those whose id is not known yet
};

}  // namespace fastserve
