// A server over a script, and clients of it.
#pragma once

#include <doctest/doctest.h>

#include <memory>

#include "rpc/client.h"
#include "rpc/server.h"
#include "scripted_service.h"

namespace fastserve::testing {

struct Served {
  explicit Served(RpcServerOptions options = {}) {
    auto started = RpcServer::start(std::move(options), service);
    if (!started.ok()) FAIL(started.error().message());
    server = std::move(started).value();
  }
  std::unique_ptr<RpcClient> connect() const {
    auto client = RpcClient::connect("127.0.0.1", server->port(), std::chrono::seconds(60));
    if (!client.ok()) FAIL(client.error().message());
    return std::move(client).value();
  }
  std::shared_ptr<ScriptedService> service = std::make_shared<ScriptedService>();
  std::unique_ptr<RpcServer> server;
};

inline GenerateRequest scripted(const std::string& script, int max_tokens = 10) {
  GenerateRequest request;
  request.prompt = script;
  request.max_tokens = max_tokens;
  return request;
}

/// Everything that came of one generation.
struct Heard {
  std::vector<int32_t> tokens;
  std::string text;
  size_t events = 0;
  GenerateEvent last;

  void add(GenerateEvent event) {
    for (const GeneratedToken& token : event.tokens) tokens.push_back(token.token);
    text += event.text;
    events++;
    last = std::move(event);
  }
  /// Tokens 0, 1, 2... up to n, each once, and their text.
  bool counts_to(int n) const {
    std::string expected;
    for (int i = 0; i < n; i++) {
      if (static_cast<size_t>(i) >= tokens.size() || tokens[static_cast<size_t>(i)] != i)
        return false;
      expected += std::to_string(i) + " ";
    }
    return tokens.size() == static_cast<size_t>(n) && text == expected;
  }
};

}  // namespace fastserve::testing
