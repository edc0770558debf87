// Several trainers and one shard in one process, each frame between them written and read as on a
// wire: what a form of gradients costs in loss.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "train/dataset.h"
#include "train/gradient_format.h"
#include "train/outer_optimiser.h"
#include "train/plan.h"

namespace fastserve {

/// A job and its data.
struct SimulatedJob {
  TrainSpec spec;
  TrainPlan plan;
  std::shared_ptr<Dataset> data;

  /// The preset's job on the texts at `path`. The tokenizer is made on the way.
  static Result<SimulatedJob> prepare(const std::string& preset, const Path& path, int64_t steps);
};

/// How its trainers and the shard speak: "GRADIENTS/WEIGHTS[/H[/RATE/MOMENTUM]]", as in
/// "int8/sign-delta" or "bf16/bf16/16". H: local steps, 0: every step is one of all trainers.
struct Wire {
  std::string text;
  GradientFormat gradients;
  WeightsBack weights;
  int local_steps = 0;
  OuterSettings outer;

  static Result<Wire> parse(const std::string& text);
};

struct Trained {
  double validation_loss = 0;
  double sent_bytes = 0, received_bytes = 0;  ///< of one trainer, a step and parameter
  double seconds = 0;
};

/// `trainers` must divide the job's microbatches. One thread.
Result<Trained> train_simulated(const SimulatedJob& job, const Wire& wire, int trainers,
                                uint64_t seed);

}  // namespace fastserve
