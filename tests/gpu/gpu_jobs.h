// Training jobs on emulated GPUs, for the tests of them.
#pragma once

#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <mutex>

#include "cpu/cpu_device.h"
#include "gpu/gpu_device.h"
#include "gpu/simt/emulated_link.h"
#include "gpu/simt/emulated_runtime.h"
#include "jobs.h"

namespace fastserve {

inline DeviceFactory portable_cpu() {
  return [](int lanes) { return make_cpu_device({lanes, Isa::kPortable}); };
}

/// `launches`: after how many the nth device is lost; 0 or none given: never.
inline DeviceFactory emulated(std::vector<int64_t> launches = {}, size_t memory = size_t{1} << 30,
                              std::shared_ptr<simt::Traffic> traffic = nullptr) {
  const auto made = std::make_shared<std::atomic<size_t>>(0);
  return [=](int) -> Result<std::unique_ptr<Device>> {
    simt::Options options;
    options.own_memory = true;
    options.memory = memory;
    options.traffic = traffic;
    const size_t nth = (*made)++;
    if (nth < launches.size()) options.launches = launches[nth];
    return gpu::make_gpu_device(simt::make_emulated_runtime(options));
  };
}

inline LinkFactory emulated_link() {
  return [](std::span<Device* const> devices) -> Result<std::unique_ptr<DeviceLink>> {
    std::vector<gpu::Runtime*> runtimes;
    for (Device* device : devices) runtimes.push_back(&gpu::runtime_of(*device));
    return simt::make_emulated_link(std::move(runtimes));
  };
}

inline TrainingSystem::Config gpu_job(int trainers, Precision precision, DeviceFactory devices,
                                      OptimiserPlace optimiser) {
  TrainingSystem::Config config = real_job(trainers, 1, precision);
  config.spec.steps = 3;
  config.spec.evaluate_every = 3;
  config.spec.checkpoint_every = 1;
  config.make_device = std::move(devices);
  config.make_host = portable_cpu();
  config.placement.optimiser = optimiser;
  return config;
}

struct Lines {
  Log log() {
    return Log([this](LogLevel, std::string_view line) {
      const std::lock_guard lock(mutex);
      text.append(line).append("\n");
    });
  }
  bool mention(std::string_view words) {
    const std::lock_guard lock(mutex);
    return text.find(words) != std::string::npos;
  }
  std::mutex mutex;
  std::string text;
};

inline double distance(std::span<const float> a, std::span<const float> b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); i++) {
    difference += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
    norm += double(a[i]) * a[i];
  }
  return std::sqrt(difference / norm);
}

/// Two sequences of six tokens.
inline Microbatch short_batch() {
  Microbatch batch;
  for (int i = 0; i < 12; i++) {
    batch.tokens.push_back(i * 7 % 50);
    batch.targets.push_back(i * 5 % 50);
  }
  batch.starts = {0, 6, 12};
  return batch;
}

}  // namespace fastserve
