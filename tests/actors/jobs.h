// Small jobs for the tests of the actors, and what they end in.
#pragma once

#include <doctest/doctest.h>

#include "actors/training_system.h"
#include "base/hash.h"
#include "tests/scratch.h"
#include "train/fake_backend.h"

namespace fastserve {

inline TrainingSystem::Config made_up_job(int trainers, int shards) {
  TrainingSystem::Config config;
  config.spec.model = find_preset("tiny")->spec.model;  // not looked at, but kept in checkpoints
  config.spec.model.vocab_size = 65;
  config.spec.block = 6;
  config.spec.batch = 7;
  config.spec.microbatches = 7;
  config.spec.precision = Precision::kFloat32;
  config.spec.steps = 20;
  config.spec.warmup_steps = 3;
  config.spec.learning_rate = 0.05;
  config.spec.evaluate_every = 5;
  config.spec.checkpoint_every = 4;
  config.placement = {trainers, trainers, shards};
  config.dataset = made_up_dataset();
  config.backend = std::make_shared<FakeBackend>();
  config.initial_weights = FakeBackend::initial_weights();
  return config;
}

inline uint64_t hash_of(const std::vector<float>& weights) {
  return hash64(std::as_bytes(std::span(weights)));
}

inline TrainOutcome run(TrainingSystem::Config config) {
  auto system = TrainingSystem::start(std::move(config));
  REQUIRE(system.ok());
  auto outcome = (*system)->wait();
  REQUIRE(outcome.ok());
  return std::move(*outcome);
}

/// The same job over a real transformer, small and of no round width.
inline TrainingSystem::Config real_job(int trainers, int lanes_each, Precision precision) {
  TrainingSystem::Config config = made_up_job(trainers, 2);
  config.backend = nullptr;
  config.initial_weights.clear();
  config.placement.lanes = trainers * lanes_each;
  config.spec.precision = precision;
  config.spec.steps = 6;
  config.spec.learning_rate = 0.01;
  config.spec.evaluate_every = 3;
  config.spec.checkpoint_every = 2;
  ModelConfig& model = config.spec.model;
  model.layers = 2;
  model.heads = model.kv_heads = 2;
  model.hidden_size = 48;
  model.head_dim = 24;
  model.intermediate_size = 80;
  model.vocab_size = 50;
  return config;
}

}  // namespace fastserve
