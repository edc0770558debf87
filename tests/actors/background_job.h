// A cluster's job that runs while a test does things to its nodes.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <mutex>

#include "in_process_cluster.h"

namespace fastserve {

/// Silent unless FASTSERVE_TEST_LOG is set.
inline Log log_of_test() {
  if (std::getenv("FASTSERVE_TEST_LOG") == nullptr) return {};
  return Log([](LogLevel, std::string_view line) {
    std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
  });
}

/// Runs the job on its own thread.
class BackgroundJob {
 public:
  /// At `hold_at` the job's coordinator waits for go_on(), so that what a test does there is not
  /// too late.
  BackgroundJob(InProcessCluster& cluster, TrainingSystem::Config config,
                int64_t hold_at = INT64_MAX) {
    config.progress = [this, hold_at](const TrainProgress& progress) {
      std::unique_lock lock(mutex_);
      step_ = std::max(step_, progress.step);
      changed_.notify_all();
      if (step_ >= hold_at) changed_.wait(lock, [&] { return going_on_; });
    };
    config.cancel = &cancel;
    thread_ = std::thread([this, &cluster, config = std::move(config)]() mutable {
      outcome_.emplace(
          cluster.coordinator().train(std::move(config), "job", [this](const ClusterRun& run) {
            std::lock_guard lock(mutex_);
            run_ = run;
          }));
    });
  }
  ~BackgroundJob() {
    go_on();
    if (thread_.joinable()) thread_.join();
  }
  /// False when the job did not get there within half a minute.
  bool wait_for_step(int64_t step) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(30), [&] { return step_ >= step; });
  }
  void go_on() {
    std::lock_guard lock(mutex_);
    going_on_ = true;
    changed_.notify_all();
  }
  Result<TrainOutcome> end() {
    thread_.join();
    return std::move(*outcome_);
  }
  ClusterRun run() {
    std::lock_guard lock(mutex_);
    return run_;
  }

  CancelFlag cancel;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t step_ = 0;
  bool going_on_ = false;
  ClusterRun run_;
  std::optional<Result<TrainOutcome>> outcome_;
  std::thread thread_;
};

}  // namespace fastserve
