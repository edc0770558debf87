// How far a training job is, on a terminal or in a log.
#pragma once

#include "api/node.h"
#include "cli/command.h"
#include "cli/progress.h"

namespace fastserve {

/// A bar on a terminal; elsewhere a line after each evaluation, and now and then. Threads: one
/// caller at a time.
class TrainingProgress {
 public:
  explicit TrainingProgress(const CommandLine& line);
  void update(const TrainUpdate& update);
  void clear() { bar_.clear(); }

 private:
  ProgressBar bar_;
  const bool lines_shown_;
  SystemClock clock_;
  Nanoseconds last_line_;
  double validation_loss_ = 0;
};

}  // namespace fastserve
