// A client of a deployment's Cap'n Proto port.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/cancel.h"
#include "base/clock.h"
#include "base/result.h"
#include "net/stream.h"
#include "serve/request.h"
#include "serve/service.h"

namespace fastserve {

/// One connection to a server.
///
/// Owns:     a socket and a thread that talks over it.
/// Threads:  any, several at a time; each call blocks its own thread.
/// Refuses:  with kUnavailable when nothing listens or the connection is lost, kUnsupported when
///           client and server speak different protocols, kDeadlineExceeded when the server does
///           not answer within the timeout given to connect(). Errors of the server come as they
///           are.
class RpcClient {
 public:
  /// `timeout` bounds connecting, and later the answer to each call (not a generation's length).
  static Result<std::unique_ptr<RpcClient>> connect(const std::string& host, int port,
                                                    Nanoseconds timeout = std::chrono::seconds(5));
  /// The same over a connection that is there.
  static Result<std::unique_ptr<RpcClient>> over(std::unique_ptr<Stream> stream,
                                                 Nanoseconds timeout = std::chrono::seconds(5));
  virtual ~RpcClient() = default;

  virtual Result<std::vector<ServedModel>> models() = 0;
  virtual Result<ServerHealth> health() = 0;
  virtual Result<std::vector<int32_t>> tokenise(const std::string& model, const std::string& text,
                                                bool add_special_tokens = true) = 0;
  virtual Result<std::string> detokenise(const std::string& model,
                                         std::span<const int32_t> tokens) = 0;
  virtual Result<ChatPrompt> format_chat(
      const std::string& model,
      std::span<const std::pair<std::string, std::string>> role_and_content) = 0;

  using OnEvent = std::function<void(GenerateEvent event)>;
  /// Blocks until the request's last event; `on_event` gets each on this thread, and holds the
  /// stream back while it works. Raising `cancel` ends the request, whose last event then says
  /// kCancelled. An error when the request was refused, failed (FinishReason::kError, also
  /// delivered) or lost its connection.
  virtual Status generate(const GenerateRequest& request, const OnEvent& on_event,
                          const CancelFlag* cancel = nullptr) = 0;

  /// The server's name and version: "fastserve 0.1.0".
  virtual const std::string& server() const = 0;
};

}  // namespace fastserve
