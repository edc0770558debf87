// Training jobs on several emulated GPUs of one host, for the tests of them.
#pragma once

#include "gpu_jobs.h"
#include "train/cards_backend.h"
#include "train/checkpoint.h"

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

/// Loses each of two cards after ever more launches, `ratio` times as many, until the job needs no
/// more, which it does before `most`. Each time it ends with that, and goes on from its checkpoint,
/// if it has one, on `again` to the weights that it would have had.
template <class MakeJob>
void lose_each_card(const MakeJob& job, const std::vector<DeviceFactory>& again, double ratio,
                    int64_t most) {
  const uint64_t expected = hash_of(run(job(again)).weights);
  for (const size_t lost : {size_t{0}, size_t{1}}) {
    int began = 0, ended = 0;
    for (int64_t launches = 20; launches < most; launches = int64_t(double(launches) * ratio)) {
      Folder folder;
      std::vector<DeviceFactory> cards(2, emulated());
      cards[lost] = emulated({launches});
      TrainingSystem::Config config = job(cards);
      config.checkpoint_directory = folder.path;
      const Status status = end_of(config);
      CAPTURE(launches);
      CAPTURE(lost);
      if (status.ok()) {
        ended++;
        break;
      }
      CHECK(status.error().code == ErrorCode::kUnavailable);
      CHECK(has(status.error().message(), "is lost"));
      if (!CheckpointDirectory::holds_any(folder.path)) continue;
      began++;
      config = job(again);
      config.checkpoint_directory = folder.path;
      config.resume = TrainingSystem::Resume::kRequired;
      CHECK(hash_of(run(std::move(config)).weights) == expected);
    }
    CHECK(began > 0);
    CHECK(ended == 1);
  }
}

}  // namespace fastserve
