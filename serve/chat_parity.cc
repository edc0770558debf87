#include "serve/chat_parity.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "serve/jinja.h"

namespace fastserve {
namespace {

constexpr size_t kExampleLength = 300;

std::string shorten(const std::string& text) {
  std::string shown = Json(text).dump();
  if (shown.size() > kExampleLength) shown = shown.substr(0, kExampleLength) + "...";
  return shown;
}

/// Expected and found, where they differ.
std::optional<std::string> difference(const Json& line, const Result<std::string>& found) {
  const std::string shown = found.ok() ? shorten(*found) : found.error().message();
  if (const Json* expected = line.find_set("expected")) {
    if (found.ok() && Json(*found) == *expected) return std::nullopt;
    return fmt::format("expected {}, found {}", shorten(expected->as_string()), shown);
  }
  const Json* words = line.find_set("error");
  const bool raised = words && words->is_string() && line.find_set("error_kind") &&
                      *line.find_set("error_kind") == Json("raise_exception");
  if (!found.ok() && (!raised || found.error().what == words->as_string())) return std::nullopt;
  return fmt::format("expected an error{}, found {}",
                     raised ? fmt::format(" that says {}", shorten(words->as_string())) : "",
                     shown);
}

ChatTemplateCheck& entry(std::vector<ChatTemplateCheck>& checks, const std::string& name) {
  const auto known = std::find_if(checks.begin(), checks.end(),
                                  [&](const ChatTemplateCheck& c) { return c.name == name; });
  if (known != checks.end()) return *known;
  return checks.emplace_back(ChatTemplateCheck{.name = name, .first_difference = ""});
}

}  // namespace

Result<std::string> render_chat_case(const Path& directory, const Json& line) {
  FS_ASSIGN(const std::string name, line.string_or("template", ""));
  if (name.empty() || Path(name).filename() != name)
    return Error{ErrorCode::kCorrupt, "names no template beside it", directory.string(), ""};
  FS_ASSIGN(const std::string text, read_file(directory / name, uint64_t{4} << 20));
  FS_ASSIGN(const JinjaTemplate program, JinjaTemplate::parse(text, name));
  Json variables{Json::Object{}};
  for (const char* key : {"messages", "tools", "documents", "add_generation_prompt"})
    if (const Json* value = line.find(key)) variables.set(key, *value);
  if (const Json* more = line.find_set("kwargs"); more && more->is_object())
    for (const auto& [key, value] : more->as_object()) variables.set(key, value);
  return program.render(variables);
}

Result<std::vector<ChatTemplateCheck>> check_chat_templates(const Path& directory) {
  const Path path = directory / "cases.jsonl";
  FS_ASSIGN(const std::string text, read_file(path));
  std::vector<ChatTemplateCheck> checks;
  int number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view one = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    number++;
    if (one.empty()) continue;
    const std::string where = fmt::format("{}:{}", path.string(), number);
    FS_ASSIGN(const Json line, Json::parse(one, where));
    const Json* expected = line.find_set("expected");
    if (expected ? !expected->is_string() : line.find_set("error") == nullptr)
      return Error{ErrorCode::kCorrupt, "has neither an expected text nor an error", where,
                   "record the cases again"};
    FS_ASSIGN(const std::string name, line.string_or("template", ""));
    FS_ASSIGN(const std::string id, line.string_or("id", fmt::format("line {}", number)));
    ChatTemplateCheck& check = entry(checks, name);
    check.cases++;
    const auto differs = difference(line, render_chat_case(directory, line));
    if (differs && check.differing++ == 0)
      check.first_difference = fmt::format("{}: {}", id, *differs);
  }
  if (checks.empty())
    return Error{ErrorCode::kCorrupt, "holds no case", path.string(), "record the cases again"};
  return checks;
}

}  // namespace fastserve
