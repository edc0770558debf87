// The door between the network and the engines: what rpc/ calls and actors/ implements.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "serve/request.h"

namespace fastserve {

struct ServedModel {
  std::string name;     ///< "shakespeare"
  std::string version;  ///< "3"
  std::string architecture, weight_format;
  int64_t parameters = 0, weight_bytes = 0;
  int context_length = 0, vocab_size = 0;
  bool on_device = true;  ///< false: it waits on the host until it is asked, or is on its way
};

struct ServerHealth {
  bool ready = false;
  int running = 0, queued = 0;  ///< requests
  int kv_blocks_free = 0, kv_blocks = 0;
  int64_t tokens_generated = 0, requests_finished = 0;
  double uptime_seconds = 0;
  std::string device;  ///< Device::description()
};

/// What asks a model for its next message.
struct ChatPrompt {
  std::string text;
  /// Belongs into the request's stop strings: ends the message where no token of the model's does.
  std::vector<std::string> stop;
};

/// Threads: every call from any thread; none blocks on the model.
class GenerateService {
 public:
  virtual ~GenerateService() = default;

  /// Receives, from the engine's thread, all events of one engine step that belong to this sink.
  /// Must not block; must not call back into the service.
  using Sink = std::function<void(std::vector<GenerateEvent> events)>;

  /// Validates and queues; the answer comes through `sink`. kNotFound: no such model;
  /// kInvalidArgument: bad sampling values, empty prompt, prompt longer than the context;
  /// kResourceExhausted: the queue is full.
  virtual Result<RequestId> submit(GenerateRequest request, Sink sink) = 0;
  /// The request's last event says kCancelled. Unknown or finished ids are ignored.
  virtual void cancel(RequestId id) = 0;

  virtual std::vector<ServedModel> models() const = 0;
  virtual ServerHealth health() const = 0;
  virtual Result<std::vector<int32_t>> tokenise(const std::string& model, const std::string& text,
                                                bool add_special_tokens) const = 0;
  virtual Result<std::string> detokenise(const std::string& model,
                                         std::span<const int32_t> tokens) const = 0;
  /// The chat template applied, or a plain fallback when the model has none.
  virtual Result<ChatPrompt> format_chat(
      const std::string& model,
      std::span<const std::pair<std::string, std::string>> role_and_content) const = 0;
};

}  // namespace fastserve
