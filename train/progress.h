// What a running job tells, and what a finished one leaves.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace fastserve {

/// Sent after every step and after every evaluation.
struct TrainProgress {
  int64_t step = 0;   ///< optimiser steps done
  int64_t steps = 0;  ///< of the whole job
  double epoch = 0;
  double loss = 0;           ///< mean over the last step's tokens
  double learning_rate = 0;  ///< of the last step
  double grad_norm = 0;      ///< before clipping
  double tokens_per_second = 0;
  double eta_seconds = 0;
  int64_t tokens = 0;                     ///< trained on so far
  std::optional<double> validation_loss;  ///< set by the report that follows an evaluation
  std::optional<double> best_validation_loss;
  int64_t skipped = 0;  ///< steps dropped because half precision overflowed
  int trainers = 0;
};

enum class TrainEnd { kAllSteps, kEarlyStop, kCancelled };

struct TrainOutcome {
  TrainEnd end = TrainEnd::kAllSteps;
  std::vector<float> weights;             ///< flat, as the layout says; those of the last step
  std::vector<float> best_weights;        ///< of the best evaluation; empty when there was none
  int64_t steps = 0;                      ///< done, resumed ones included
  int64_t tokens = 0;                     ///< trained on
  std::vector<double> losses;             ///< of every step since start or resumption
  std::optional<double> validation_loss;  ///< last
  std::optional<double> best_validation_loss;
  int64_t best_step = -1;
  double tokens_per_second = 0;  ///< of the steps alone, evaluations left out
  double seconds = 0;
  int64_t skipped = 0;
  int64_t repeated_units = 0;         ///< computed twice because a trainer was lost or slow
  uint64_t peak_memory_bytes = 0;     ///< allocated by this process while the job ran
  uint64_t planned_memory_bytes = 0;  ///< what it held before, and estimate_memory() on top
  Status checkpoint;                  ///< of the last one written
};

}  // namespace fastserve
