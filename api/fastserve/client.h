// A client of a deployed model: what `fsctl generate --connect` does, inside a host program.
//
//   #include <fastserve/client.h>
//
//   fastserve::Client client{"127.0.0.1", 8080};
//   client.generate("Once", {.max_tokens = 100, .on_text = [](const std::string& text) {
//     std::cout << text << std::flush;
//     return true;
//   }});
//
// Programs in other languages read the same protocol from share/fastserve/schema/fastserve.capnp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fastserve.h"

namespace fastserve {

/// One model of a deployment.
struct DeployedModel {
  std::string name, version, architecture, weight_format;
  int64_t parameters = 0, weight_bytes = 0;
  int context_length = 0;  ///< tokens of prompt and answer together
  int vocab_size = 0;
  bool on_device = true;  ///< false: its first token waits until it has come to the device
};

struct DeploymentHealth {
  bool ready = false;
  int running = 0, queued = 0;  ///< requests
  int kv_blocks_free = 0, kv_blocks = 0;
  int64_t tokens_generated = 0, requests_finished = 0;
  double uptime_seconds = 0;
  std::string device;
};

struct ChatMessage {
  std::string role;  ///< "system", "user" or "assistant"
  std::string content;
};

/// One connection to a deployment. Every call that fails throws FastServeError; a server that has
/// gone or stands still is code 7 or 8 (unavailable, deadline exceeded), never a hang.
///
/// Threads: any, several at a time; each call blocks its own thread. Requests that run at the same
/// time share the server's batches.
class Client {
 public:
  /// Connects. `timeout_seconds` bounds connecting, each answer, and the silence of a server.
  explicit Client(const std::string& host, int port, double timeout_seconds = 5);
  ~Client();
  Client(Client&& other) noexcept;
  Client& operator=(Client&& other) noexcept;

  std::vector<DeployedModel> models();
  DeploymentHealth health();

  /// Blocks until the answer ends; `options.on_text` gets it piece by piece on this thread.
  Generation generate(const std::string& prompt, const GenerateOptions& options = {});
  /// The same for a prompt that is tokens already.
  Generation generate(const std::vector<int32_t>& prompt, const GenerateOptions& options = {});

  /// `model`: a name from models(); empty: the only one.
  std::vector<int32_t> tokenise(const std::string& text, const std::string& model = {},
                                bool add_special_tokens = true);
  std::string detokenise(const std::vector<int32_t>& tokens, const std::string& model = {});
  /// The model's next message, asked for by its own chat template.
  Generation chat(const std::vector<ChatMessage>& messages, const GenerateOptions& options = {});
  /// The prompt that chat() sends.
  std::string format_chat(const std::vector<ChatMessage>& messages, const std::string& model = {});

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace fastserve
