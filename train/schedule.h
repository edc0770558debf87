// The learning rate at each step.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include "train/spec.h"

namespace fastserve {

/// Linear warm-up, then a cosine from learning_rate down to min_learning_rate at the last step
/// (Loshchilov & Hutter 2017, in nanoGPT's form). `step` counts from 0.
inline double learning_rate_at(const TrainSpec& spec, int64_t step) {
  const double at = static_cast<double>(step), warmup = static_cast<double>(spec.warmup_steps);
  if (step < spec.warmup_steps) return spec.learning_rate * (at + 1) / (warmup + 1);
  if (step >= spec.steps) return spec.min_learning_rate;
  const double done = (at - warmup) / static_cast<double>(spec.steps - spec.warmup_steps);
  const double share = 0.5 * (1 + std::cos(std::numbers::pi * done));
  return spec.min_learning_rate + share * (spec.learning_rate - spec.min_learning_rate);
}

}  // namespace fastserve
