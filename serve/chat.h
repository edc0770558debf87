// A conversation as the one text a model was trained on.
#pragma once

#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace fastserve {

enum class ChatStyle {
  kPlain,    ///< "role: content" lines; for models without a template, or with an unknown one
  kChatMl,   ///< <|im_start|>role ... <|im_end|>
  kLlama3,   ///< <|start_header_id|>role<|end_header_id|> ... <|eot_id|>
  kLlama2,   ///< [INST] with <<SYS>>
  kMistral,  ///< [INST], the system text before the last question
  kZephyr,   ///< <|role|> lines closed by the end token
  kGemma,    ///< <start_of_turn>role ... <end_of_turn>
};
const char* chat_style_name(ChatStyle style);

/// How one model's conversations are written.
///
/// A Hugging Face chat template is a Jinja program; this does not run it, but recognises the
/// well-known ones by their markers (chat_template.jinja, or "chat_template" in
/// tokenizer_config.json) and writes what they write for turns of plain text. A ChatML template's
/// own default system text is kept when the template spells it between its markers.
///
/// Threads: const calls from any thread.
class ChatFormat {
 public:
  /// From a model's documents. Never fails: what is not understood is kPlain.
  static ChatFormat from_documents(const std::map<std::string, std::string>& documents);
  ChatFormat(ChatStyle style, std::string bos, std::string eos, std::string default_system = "")
      : style_(style),
        bos_(std::move(bos)),
        eos_(std::move(eos)),
        default_system_(std::move(default_system)) {}

  ChatStyle style() const { return style_; }

  using Turn = std::pair<std::string, std::string>;  ///< role and content
  /// With `ask` the text ends where the assistant's answer begins. kInvalidArgument for an empty
  /// conversation, and for roles that the style's template refuses.
  Result<std::string> format(std::span<const Turn> turns, bool ask = true) const;
  /// What ends the model's answer where no token of its own does: the next question, in kPlain.
  std::vector<std::string> stop_strings() const {
    if (style_ == ChatStyle::kPlain) return {"\nuser:"};
    return {};
  }

 private:
  std::string chat_ml(std::span<const Turn> turns, bool ask) const;
  std::string llama3(std::span<const Turn> turns, bool ask) const;
  Result<std::string> inst(std::span<const Turn> turns) const;
  std::string zephyr(std::span<const Turn> turns, bool ask) const;
  Result<std::string> gemma(std::span<const Turn> turns, bool ask) const;

  ChatStyle style_;
  std::string bos_, eos_, default_system_;
};

}  // namespace fastserve
