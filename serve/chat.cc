#include "serve/chat.h"

#include <string_view>

#include "base/json.h"

namespace fastserve {
namespace {

Error refuse(std::string what) {
  return {ErrorCode::kInvalidArgument, std::move(what), "messages",
          "the model's chat template does not allow this"};
}

std::string trim(const std::string& text) {
  const char* blanks = " \t\n\r\f\v";
  const size_t from = text.find_first_not_of(blanks);
  if (from == std::string::npos) return "";
  return text.substr(from, text.find_last_not_of(blanks) - from + 1);
}

/// The template's text: its own file, or a member of tokenizer_config.json, which may hold several.
std::string template_text(const std::map<std::string, std::string>& documents,
                          const Json& tokenizer_config) {
  const auto file = documents.find("chat_template.jinja");
  if (file != documents.end()) return file->second;
  const Json* member = tokenizer_config.find_set("chat_template");
  if (member == nullptr) return "";
  if (member->is_string()) return member->as_string();
  if (!member->is_array()) return "";
  for (const Json& choice : member->as_array()) {
    const Json* name = choice.find_set("name");
    const Json* text = choice.find_set("template");
    if (name && text && text->is_string() && *name == Json("default")) return text->as_string();
  }
  return "";
}

/// "bos_token": "<s>", or {"content": "<s>", ...}.
std::string special_token(const Json& tokenizer_config, std::string_view key) {
  const Json* token = tokenizer_config.find_set(key);
  if (token && token->is_object()) token = token->find_set("content");
  return token && token->is_string() ? token->as_string() : "";
}

ChatStyle recognise(std::string_view text) {
  const auto has = [&](std::string_view marker) {
    return text.find(marker) != std::string_view::npos;
  };
  if (has("<|im_start|>")) return ChatStyle::kChatMl;
  if (has("<|start_header_id|>")) return ChatStyle::kLlama3;
  if (has("[INST]")) return has("<<SYS>>") ? ChatStyle::kLlama2 : ChatStyle::kMistral;
  if (has("<start_of_turn>")) return ChatStyle::kGemma;
  if (has("<|user|>") && has("<|assistant|>") && !has("<|end|>")) return ChatStyle::kZephyr;
  return ChatStyle::kPlain;
}

/// The literal X in "<|im_start|>system\nX<|im_end|>", whose line break may be spelled out.
std::string default_system_of(std::string_view text) {
  constexpr std::string_view kOpen = "<|im_start|>system";
  for (size_t at = text.find(kOpen); at != std::string_view::npos; at = text.find(kOpen, at + 1)) {
    std::string_view rest = text.substr(at + kOpen.size());
    if (rest.starts_with("\\n"))
      rest.remove_prefix(2);
    else if (rest.starts_with("\n"))
      rest.remove_prefix(1);
    else
      continue;
    const size_t end = rest.find("<|im_end|>");
    if (end == 0 || end == std::string_view::npos) continue;
    const std::string_view literal = rest.substr(0, end);
    if (literal.find_first_of("'\"{}\\") == std::string_view::npos) return std::string(literal);
  }
  return "";
}

std::string plain(std::span<const ChatFormat::Turn> turns, bool ask) {
  std::string out;
  for (const auto& [role, content] : turns) out += role + ": " + content + "\n";
  return ask ? out + "assistant:" : out;
}

}  // namespace

const char* chat_style_name(ChatStyle style) {
  switch (style) {
    case ChatStyle::kPlain:
      return "plain";
    case ChatStyle::kChatMl:
      return "chatml";
    case ChatStyle::kLlama3:
      return "llama3";
    case ChatStyle::kLlama2:
      return "llama2";
    case ChatStyle::kMistral:
      return "mistral";
    case ChatStyle::kZephyr:
      return "zephyr";
    case ChatStyle::kGemma:
      return "gemma";
  }
  return "unknown";
}

ChatFormat ChatFormat::from_documents(const std::map<std::string, std::string>& documents) {
  Json config;
  const auto file = documents.find("tokenizer_config.json");
  if (file != documents.end()) {
    auto parsed = Json::parse(file->second, "tokenizer_config.json");
    if (parsed.ok()) config = *std::move(parsed);
  }
  const std::string text = template_text(documents, config);
  return {recognise(text), special_token(config, "bos_token"), special_token(config, "eos_token"),
          default_system_of(text)};
}

Result<std::string> ChatFormat::format(std::span<const Turn> turns, bool ask) const {
  if (turns.empty()) return refuse("the conversation is empty");
  switch (style_) {
    case ChatStyle::kPlain:
      return plain(turns, ask);
    case ChatStyle::kChatMl:
      return chat_ml(turns, ask);
    case ChatStyle::kLlama3:
      return llama3(turns, ask);
    case ChatStyle::kLlama2:
    case ChatStyle::kMistral:
      return inst(turns);
    case ChatStyle::kZephyr:
      return zephyr(turns, ask);
    case ChatStyle::kGemma:
      return gemma(turns, ask);
  }
  return refuse("the chat style is unknown");
}

std::string ChatFormat::chat_ml(std::span<const Turn> turns, bool ask) const {
  const auto turn = [](const std::string& role, const std::string& content) {
    return "<|im_start|>" + role + "\n" + content + "<|im_end|>\n";
  };
  std::string out;
  if (!default_system_.empty() && turns[0].first != "system") out = turn("system", default_system_);
  for (const auto& [role, content] : turns) out += turn(role, content);
  return ask ? out + "<|im_start|>assistant\n" : out;
}

std::string ChatFormat::llama3(std::span<const Turn> turns, bool ask) const {
  const auto header = [](const std::string& role) {
    return "<|start_header_id|>" + role + "<|end_header_id|>\n\n";
  };
  std::string out = bos_;
  for (const auto& [role, content] : turns) out += header(role) + trim(content) + "<|eot_id|>";
  return ask ? out + header("assistant") : out;
}

/// Llama 2 puts the system text into the first question, Mistral into the last turn if that is one;
/// Llama 2 begins each question anew.
Result<std::string> ChatFormat::inst(std::span<const Turn> turns) const {
  const bool llama2 = style_ == ChatStyle::kLlama2;
  std::string out, system;
  size_t index = 0;
  for (size_t i = 0; i < turns.size(); ++i) {
    const auto& [role, content] = turns[i];
    if (role == "system" && (!llama2 || i == 0)) {
      system = llama2 ? "<<SYS>>\n" + content + "\n<</SYS>>\n\n" : content + "\n\n";
      continue;
    }
    if ((role == "user") != (index % 2 == 0))
      return refuse("roles must alternate between user and assistant, and there is " + role);
    if (role != "user" && role != "assistant") {
      if (!llama2) return refuse("the role " + role + " is not supported");
    } else if (role == "user") {
      if (llama2 || index == 0) out += bos_;
      const bool here = llama2 ? index == 0 : i + 1 == turns.size();
      const std::string question = (here ? system : "") + content;
      out += "[INST] " + (llama2 ? trim(question) : question) + " [/INST]";
    } else {
      out += " " + (llama2 ? trim(content) + " " : content) + eos_;
    }
    ++index;
  }
  return out;
}

std::string ChatFormat::zephyr(std::span<const Turn> turns, bool ask) const {
  std::string out;
  for (const auto& [role, content] : turns)
    if (role == "user" || role == "system" || role == "assistant")
      out += "<|" + role + "|>\n" + content + eos_ + "\n";
  return ask ? out + "<|assistant|>\n" : out;
}

Result<std::string> ChatFormat::gemma(std::span<const Turn> turns, bool ask) const {
  if (turns[0].first == "system") return refuse("the role system is not supported");
  std::string out = bos_;
  for (const auto& [role, content] : turns)
    out += "<start_of_turn>" + (role == "assistant" ? "model" : role) + "\n" + trim(content) +
           "<end_of_turn>\n";
  return ask ? out + "<start_of_turn>model\n" : out;
}

}  // namespace fastserve
