// One way to generate, whether the model runs in this process or behind a port.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "api/answer.h"
#include "cli/command.h"

namespace fastserve {

class Generator {
 public:
  virtual ~Generator() = default;
  /// Blocks until the answer ends; `on_text` gets it piece by piece on the caller's thread.
  virtual Result<Answer> generate(const GenerateRequest& request,
                                  const std::function<void(const std::string&)>& on_text) = 0;
  virtual Result<ChatPrompt> format_chat(
      const std::vector<std::pair<std::string, std::string>>& turns) = 0;
};

/// With `connect` ("HOST:PORT"): a client of that deployment. Otherwise loads `model` in this
/// process, with keys and values as `kv` says ("": as a deployment's default).
Result<std::unique_ptr<Generator>> open_generator(CommandLine& line, const std::string& model,
                                                  const std::string& connect,
                                                  const std::string& kv);

}  // namespace fastserve
