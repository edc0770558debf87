// The best validation loss so far, and when to give up hope of a better one.
#pragma once

#include <cstdint>
#include <limits>

namespace fastserve {

/// A plain value: copy it into a checkpoint.
struct EarlyStop {
  double best_loss = std::numeric_limits<double>::infinity();
  int64_t best_step = -1;  ///< optimiser steps done at the best evaluation; -1: none yet
  int worse = 0;           ///< evaluations since the best

  /// True when `loss` is the best so far.
  bool evaluated(int64_t step, double loss) {
    if (loss < best_loss) {
      best_loss = loss;
      best_step = step;
      worse = 0;
      return true;
    }
    worse++;
    return false;
  }
  bool should_stop(int patience) const { return patience > 0 && worse >= patience; }
};

}  // namespace fastserve
