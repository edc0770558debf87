// A conversation as the one text a model was trained on.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "serve/jinja.h"

namespace fastserve {

/// How one model's conversations are written: by its own chat template (chat_template.jinja, or
/// "chat_template" in tokenizer_config.json), or, for a model without one, as lines
/// "role: content".
///
/// Threads: const calls from any thread.
class ChatFormat {
 public:
  /// From a model's documents. Never fails: a template that cannot be read counts as none, and
  /// problem() says why.
  static ChatFormat from_documents(const std::map<std::string, std::string>& documents);
  ChatFormat() = default;  ///< without a template

  bool has_template() const { return template_ != nullptr; }
  const std::optional<Error>& problem() const { return problem_; }

  using Turn = std::pair<std::string, std::string>;  ///< role and content
  /// With `ask` the text ends where the assistant's answer begins. kInvalidArgument for an empty
  /// conversation, and, in the template's words, for one that it refuses.
  Result<std::string> format(std::span<const Turn> turns, bool ask = true) const;
  /// What ends the assistant's answer in the text, where no token does.
  std::vector<std::string> stop_strings() const {
    if (!template_) return {"\nuser:"};
    return {};
  }

 private:
  std::shared_ptr<const JinjaTemplate> template_;
  std::optional<Error> problem_;
  Json tokens_{Json::Object{}};  ///< bos_token, eos_token... as the template calls them
};

}  // namespace fastserve
