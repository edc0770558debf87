// A training job running in this process: one coordinator, some trainers, some parameter servers.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "base/cancel.h"
#include "base/clock.h"
#include "base/log.h"
#include "model/device_link.h"
#include "train/dataset.h"
#include "train/device_backend.h"
#include "train/progress.h"
#include "train/spec.h"

namespace fastserve {

/// Runs one job from start to wait().
///
/// Owns:     an actor system and its threads; the weights while they are trained.
/// Threads:  calls from any thread. Several systems may run in one process.
/// Promises: the weights' bits depend on the spec, the data and the numerics id alone. A cancelled
/// job
///           drops the step at work and writes a checkpoint. After destruction no thread and
///           no lock is left.
class TrainingSystem {
 public:
  enum class Resume {
    kNever,    ///< kAlreadyExists when the directory holds checkpoints
    kIfThere,  ///< go on from the newest whole one, or start afresh
    kRequired  ///< kNotFound when there is none
  };
  struct Config {
    TrainSpec spec;
    TrainPlacement placement;
    std::shared_ptr<const Dataset> dataset;
    std::string tokenizer_json;                ///< kept in checkpoints
    std::optional<Path> checkpoint_directory;  ///< absent: nothing is written
    std::optional<Path> ledger;  ///< file that says whose work counted in each step; absent: none
    Resume resume = Resume::kIfThere;
    std::vector<float> initial_weights;  ///< flat; empty: fresh ones from the seed
    DeviceFactory make_device;           ///< empty: the CPU
    DeviceFactory make_host;  ///< as make_device_backend()'s: the CPU beside such devices
    /// More devices of this host with memory of their own, of the kind of make_device's: the job
    /// works on all of them together, to the bits that one of them would end in.
    std::vector<DeviceFactory> more_devices;
    LinkFactory link;                       ///< joins them
    std::shared_ptr<TrainBackend> backend;  ///< set: used instead of devices; needs initial_weights
    const Clock* clock = nullptr;           ///< null: the system's
    Log log;
    /// Called on the coordinator's thread after each step and evaluation: be quick.
    std::function<void(const TrainProgress&)> progress;
    const CancelFlag* cancel = nullptr;
    uint64_t memory_limit = 0;  ///< bytes the job may take; 0: what the machine has to give
  };

  /// kInvalidArgument, kResourceExhausted (figures inside) or what the parts report; after an error
  /// nothing is left behind.
  static Result<std::unique_ptr<TrainingSystem>> start(Config config);
  /// Ends the job at once, without a checkpoint, if it still runs.
  ~TrainingSystem();

  /// Blocks until the job ends; once. A cancelled job is an outcome (TrainEnd::kCancelled), not an
  /// error.
  Result<TrainOutcome> wait();

  /// Ends a trainer as a crash would; its work goes to the others.
  void kill_trainer(int i);
  int trainers() const;
  /// The settings in full: steps, microbatches and everything resumed.
  const TrainSpec& spec() const;
  /// "cpu avx512-bf16, bf16, 2 lanes; 2 trainers, 2 parameter servers; 4 microbatches of up to 192
  /// tokens"
  std::string description() const;

 private:
  struct State;
  explicit TrainingSystem(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace fastserve
