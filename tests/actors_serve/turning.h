// Small models that do not fit into a device's memory together, and clients of them.
#pragma once

#include <doctest/doctest.h>

#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "actors/serving_system.h"
#include "model/huggingface.h"
#include "tests/actors_serve/listener.h"

namespace fastserve {

inline GenerateRequest turn_request(const std::string& model, int variant = 0) {
  GenerateRequest request;
  request.model = model;
  for (int t = 0; t < 9 + 3 * variant; ++t) request.prompt_tokens.push_back(3 + (2 + variant) * t);
  request.max_tokens = 6;
  request.ignore_eos = true;
  request.sampling.temperature = variant % 2 == 0 ? 0 : 0.9;
  request.sampling.seed = static_cast<uint64_t>(variant);
  return request;
}

inline Answer ask(ServingSystem& system, const std::string& model, int variant = 0) {
  Listener listener;
  const auto id = system.submit(turn_request(model, variant), listener.sink());
  if (!id.ok()) return {{}, FinishReason::kError, id.error(), 1};
  return listener.wait();
}

inline ModelBundle turn_bundle(const std::string& name) {
  return read_model_directory(Path(FASTSERVE_SOURCE_DIR) / "tests/data/reference/models" / name)
      .value();
}

/// A model's tensors that can be damaged, held up and counted.
class WatchedTensors final : public TensorSource {
 public:
  explicit WatchedTensors(std::shared_ptr<const TensorSource> tensors)
      : tensors_(std::move(tensors)) {}
  std::vector<std::string> names() const override { return tensors_->names(); }
  bool contains(std::string_view name) const override { return tensors_->contains(name); }
  std::string where() const override { return tensors_->where(); }
  Result<TensorView> glance(std::string_view name) const override { return tensors_->tensor(name); }
  Result<TensorView> tensor(std::string_view name) const override {
    std::unique_lock lock(mutex_);
    ++read_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return !held_; });
    if (failure_) return *failure_;
    return tensors_->tensor(name);
  }
  void damage(std::optional<Error> failure) {
    const std::lock_guard lock(mutex_);
    failure_ = std::move(failure);
  }
  void hold(bool held) {
    const std::lock_guard lock(mutex_);
    held_ = held;
    changed_.notify_all();
  }
  void wait_until_read() const {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return read_ > 0; });
  }
  int read() const {
    const std::lock_guard lock(mutex_);
    return read_;
  }

 private:
  const std::shared_ptr<const TensorSource> tensors_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  mutable int read_ = 0;
  bool held_ = false;
  std::optional<Error> failure_;
};

struct Turning {
  std::vector<std::pair<std::string, ModelBundle>> models;
  DeviceFactory make_device = {};
  uint64_t memory = 0, host_memory = 0;
  bool turns = true;
  std::vector<std::string>* lines = nullptr;  ///< of the log

  Result<std::shared_ptr<ServingSystem>> open() const {
    ServingSystem::Config config;
    config.lanes = 1;
    config.make_device = make_device;
    config.limits.max_running = 4;
    config.memory_limit = memory;
    config.turns = turns;
    config.host_memory = host_memory;
    config.turn = std::chrono::milliseconds(5);
    if (lines != nullptr)
      config.log = Log(
          [lines = lines, mutex = std::make_shared<std::mutex>()](LogLevel, std::string_view line) {
            const std::lock_guard lock(*mutex);
            lines->emplace_back(line);
          });
    for (const auto& [name, bundle] : models) {
      ServingSystem::Model model;
      model.name = name;
      model.version = "1";
      model.bundle = bundle;
      model.options.max_rows = 16;
      model.options.kv_blocks = 256;  // which lie there, unlike what passes through while it loads
      config.models.push_back(std::move(model));
    }
    return ServingSystem::open(std::move(config));
  }
  std::shared_ptr<ServingSystem> start() const {
    auto system = open();
    REQUIRE_MESSAGE(system.ok(), system.error().message());
    const Status loaded = (*system)->wait_until_loaded();
    REQUIRE_MESSAGE(loaded.ok(), loaded.error().message());
    return *std::move(system);
  }
};

/// Little more memory than the largest of the models needs: no two of them fit, of models that are
/// about as large. `open` tries so much.
inline uint64_t memory_for_one(const std::function<bool(uint64_t bytes)>& open) {
  uint64_t bytes = uint64_t{1} << 18;
  while (!open(bytes)) {
    bytes += uint64_t{1} << 16;
    REQUIRE(bytes < uint64_t{256} << 20);
  }
  return bytes;
}

/// Two clients ask models in turns; each answer is that of a model which is deployed alone.
inline void check_alternating(ServingSystem& system, const std::vector<std::string>& names,
                              const DeviceFactory& make_device, int rounds) {
  std::map<std::pair<std::string, int>, std::vector<int32_t>> alone;
  for (const std::string& name : names) {
    const auto one =
        Turning{.models = {{name, turn_bundle(name)}}, .make_device = make_device, .turns = false}
            .start();
    for (int variant = 0; variant < 3; ++variant)
      alone[{name, variant}] = ask(*one, name, variant).tokens;
  }
  std::atomic<int> wrong = 0;
  std::vector<std::thread> clients;
  for (size_t c = 0; c < 2; ++c)
    clients.emplace_back([&, c] {
      for (size_t i = 0; i < static_cast<size_t>(rounds); ++i) {
        const std::string& name = names[(i + c) % names.size()];
        const int variant = static_cast<int>(i % 3);
        const Answer answer = ask(system, name, variant);
        if (answer.ends != 1 || answer.finish != FinishReason::kLength ||
            answer.tokens != alone.at({name, variant}))
          ++wrong;
      }
    });
  for (std::thread& client : clients) client.join();
  CHECK(wrong == 0);
  for (const auto& [what, tokens] : alone) CHECK(tokens.size() == 6);
}

}  // namespace fastserve
