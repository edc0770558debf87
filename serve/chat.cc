#include "serve/chat.h"

#include <string_view>

namespace fastserve {
namespace {

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

/// Every "..._token": "<s>", or {"content": "<s>", ...}.
Json special_tokens(const Json& tokenizer_config) {
  Json tokens{Json::Object{}};
  if (!tokenizer_config.is_object()) return tokens;
  for (const auto& [key, value] : tokenizer_config.as_object()) {
    const Json* token = value.is_object() ? value.find_set("content") : &value;
    if (key.ends_with("_token") && token && token->is_string()) tokens.set(key, *token);
  }
  return tokens;
}

std::string plain(std::span<const ChatFormat::Turn> turns, bool ask) {
  std::string out;
  for (const auto& [role, content] : turns) out += role + ": " + content + "\n";
  return ask ? out + "assistant:" : out;
}

}  // namespace

ChatFormat ChatFormat::from_documents(const std::map<std::string, std::string>& documents) {
  Json config;
  const auto file = documents.find("tokenizer_config.json");
  if (file != documents.end()) {
    auto parsed = Json::parse(file->second, "tokenizer_config.json");
    if (parsed.ok()) config = *std::move(parsed);
  }
  ChatFormat format;
  format.tokens_ = special_tokens(config);
  const std::string text = template_text(documents, config);
  if (text.empty()) return format;
  auto program = JinjaTemplate::parse(text, "chat template");
  if (program.ok())
    format.template_ = std::make_shared<const JinjaTemplate>(*std::move(program));
  else
    format.problem_ = program.error();
  return format;
}

Result<std::string> ChatFormat::format(std::span<const Turn> turns, bool ask) const {
  if (turns.empty())
    return Error{ErrorCode::kInvalidArgument, "the conversation is empty", "messages",
                 "give at least one message"};
  if (!template_) return plain(turns, ask);
  Json::Array messages;
  for (const auto& [role, content] : turns)
    messages.push_back(Json::object({{"role", role}, {"content", content}}));
  Json variables = tokens_;
  variables.set("messages", std::move(messages));
  variables.set("tools", nullptr);
  variables.set("documents", nullptr);
  variables.set("add_generation_prompt", ask);
  return template_->render(variables);
}

}  // namespace fastserve
