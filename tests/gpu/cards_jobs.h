// Training jobs on several emulated GPUs of one host, for the tests of them.
#pragma once

#include "gpu_jobs.h"
#include "train/cards_backend.h"

namespace fastserve {

/// One trainer for each card.
inline TrainingSystem::Config cards_job(const std::vector<DeviceFactory>& cards,
                                        Precision precision) {
  TrainingSystem::Config config =
      gpu_job(static_cast<int>(cards.size()), precision, cards.front(), OptimiserPlace::kDevice);
  config.more_devices.assign(cards.begin() + 1, cards.end());
  config.link = emulated_link();
  config.placement.shards = 0;
  return config;
}
inline TrainingSystem::Config cards_job(size_t cards, Precision precision) {
  return cards_job(std::vector<DeviceFactory>(cards, emulated()), precision);
}

/// The error that a job ends in, if it does.
inline Status end_of(TrainingSystem::Config config) {
  auto system = TrainingSystem::start(std::move(config));
  if (!system.ok()) return system.error();
  const auto outcome = (*system)->wait();
  if (!outcome.ok()) return outcome.error();
  return {};
}

inline std::string description_of(const TrainingSystem::Config& config) {
  const auto system = TrainingSystem::start(config);
  REQUIRE_MESSAGE(system.ok(), system.error().message());
  const auto outcome = (*system)->wait();
  REQUIRE_MESSAGE(outcome.ok(), outcome.error().message());
  return (*system)->description();
}

inline bool has(const std::string& text, const char* words) {
  return text.find(words) != std::string::npos;
}

}  // namespace fastserve
