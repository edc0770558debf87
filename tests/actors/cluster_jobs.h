// Jobs for a cluster in one process, and what they end in.
#pragma once

#include "background_job.h"

namespace fastserve {

inline TrainingSystem::Config job_in(const Folder& folder,
                                     Precision precision = Precision::kBFloat16) {
  TrainingSystem::Config config = real_job(1, 1, precision);
  config.checkpoint_directory = folder.path;
  config.log = log_of_test();
  return config;
}

inline TrainingSystem::Config long_job_in(const Folder& folder, int64_t steps = 60) {
  TrainingSystem::Config config = job_in(folder);
  config.spec.steps = steps;
  config.spec.checkpoint_every = 5;
  config.spec.evaluate_every = 10;
  return config;
}

inline uint64_t bits_of_long_job(int64_t steps = 60) {
  Folder folder;
  return hash_of(run(long_job_in(folder, steps)).weights);
}

}  // namespace fastserve
