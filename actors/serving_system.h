// Deployed models answering requests in this process.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/clock.h"
#include "base/log.h"
#include "model/decoder.h"
#include "serve/engine.h"
#include "serve/model_turns.h"
#include "serve/scheduler.h"
#include "serve/service.h"

namespace fastserve {

/// Loads models and serves them on one device thread, each with its own engine. Requests are let in
/// while weights are being loaded, and end with the load's error when that fails.
///
/// With Config::turns models that do not fit into the device's memory together take turns there
/// (serve/model_turns.h): one that is not there waits on the host until it is asked.
///
/// Owns:     an actor system, the device and everything loaded.
/// Threads:  calls from any thread. Several systems may run in one process.
/// Promises: every request that submit() accepted gets exactly one last event, whatever happens.
///           After stop() no sink is called; after destruction no thread is left.
class ServingSystem final : public GenerateService {
 public:
  struct Model {
    std::string name, version;
    ModelBundle bundle;
    DecoderOptions options;  ///< max_logits 0: as many as requests run at once
  };
  struct Config {
    std::vector<Model> models;
    int lanes = 0;              ///< 0: every usable core
    DeviceFactory make_device;  ///< empty: the CPU
    SchedulerLimits limits;     ///< its max_waiting is set from max_queue
    int max_queue = 256;        ///< requests of one model beyond those that run at once
    uint64_t memory_limit = 0;  ///< bytes the models may take; 0: what the device has to give
    bool turns = false;         ///< models need not fit together, but each by itself
    /// With turns, on a device with a memory of its own: bytes of pinned memory of the host from
    /// which models come back at the link's speed, the first of them that fit.
    uint64_t host_memory = 0;
    Nanoseconds turn = std::chrono::seconds(1);  ///< a model has that long while others wait
    const Clock* clock = nullptr;                ///< null: the system's; must outlive the system
    Log log;
    /// 0..1 until wait_until_loaded() returns, from the device's thread; may be empty.
    std::function<void(double)> progress;
  };

  /// Lets requests in, and goes on loading. kInvalidArgument: no model, or a name twice;
  /// kResourceExhausted: the figures, before anything is loaded; kNotFound: a model without its
  /// tokenizer.json; and what the parts report.
  static Result<std::shared_ptr<ServingSystem>> open(Config config);
  /// Returns once all weights are there (with turns: all that fit together), and no progress is
  /// reported any more. Errors: the store's or the device's; kUnavailable when it was stopped
  /// before.
  Status wait_until_loaded();
  /// Both: loads them before it returns.
  static Result<std::shared_ptr<ServingSystem>> start(Config config);

  /// A model that is loaded, or whose decoder takes its weights as it is stepped.
  struct LoadedModel {
    ServedModel info;
    std::unique_ptr<Engine> engine;
    std::map<std::string, std::string> documents;  ///< for the chat template
  };
  /// Serves `models`; `device` (may be null) is what their decoders run on, `description` its name.
  /// Of `config`, models and what concerns loading are ignored.
  static Result<std::shared_ptr<ServingSystem>> serve(Config config,
                                                      std::vector<LoadedModel> models,
                                                      std::unique_ptr<Device> device,
                                                      std::string description);
  /// stop(Stop::kCancel).
  ~ServingSystem() override;

  enum class Stop {
    kDrain,  ///< answers what was accepted, then stops
    kCancel  ///< ends every request with kCancelled
  };
  /// Refuses further requests (kUnavailable) and blocks until the last event is out, or `patience`
  /// is over: then false, and a later stop() may take another way. Not from a sink.
  bool stop(Stop how, Nanoseconds patience = Nanoseconds::max());

  Result<RequestId> submit(GenerateRequest request, Sink sink) override;
  void cancel(RequestId id) override;
  std::vector<ServedModel> models() const override;
  ServerHealth health() const override;
  Result<std::vector<int32_t>> tokenise(const std::string& model, const std::string& text,
                                        bool add_special_tokens) const override;
  Result<std::string> detokenise(const std::string& model,
                                 std::span<const int32_t> tokens) const override;
  Result<ChatPrompt> format_chat(
      const std::string& model,
      std::span<const std::pair<std::string, std::string>> role_and_content) const override;

 private:
  struct State;
  explicit ServingSystem(std::unique_ptr<State> state);
  static Result<std::shared_ptr<ServingSystem>> serve(Config config,
                                                      std::vector<LoadedModel> models,
                                                      std::optional<ModelTurns> turns,
                                                      std::unique_ptr<Device> device,
                                                      std::string description,
                                                      std::shared_ptr<CancelFlag> stop_loading);
  std::unique_ptr<State> state_;
};

}  // namespace fastserve
