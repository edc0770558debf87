#include "cluster/transfer_documents.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace fastserve {
namespace {

constexpr size_t kLongestWord = 256, kLongestText = 2048;
constexpr std::array kWants = {"pull", "push", "text", "generate"};

Error malformed(std::string what, std::string where) {
  return {ErrorCode::kCorrupt, std::move(what), std::move(where),
          "the peer may be of another version, or no FastServe"};
}

Result<std::string> word_of(const Json& json, std::string_view key) {
  FS_ASSIGN(std::string text, json.string_or(key, ""));
  if (text.size() <= kLongestWord) return text;
  return malformed(fmt::format("is longer than {} bytes", kLongestWord), std::string(key));
}

/// At most `longest` bytes, whole characters.
std::string cut(const std::string& text) {
  size_t size = std::min(text.size(), kLongestText);
  while (size < text.size() && size > 0 && (static_cast<uint8_t>(text[size]) & 0xc0) == 0x80)
    size--;
  return text.substr(0, size);
}

}  // namespace

Json error_to_json(const Error& error) {
  return Json::object({{"code", static_cast<int>(error.code)},
                       {"what", cut(error.what)},
                       {"where", cut(error.where)},
                       {"hint", cut(error.hint)}});
}

Error error_from_json(const Json& json) {
  Error error{ErrorCode::kInternal, "", "", ""};
  const auto code = json.int_or("code", 0);
  if (code.ok() && *code >= 1 && *code <= static_cast<int>(ErrorCode::kInternal))
    error.code = static_cast<ErrorCode>(*code);
  const auto text = [&](std::string_view key) {
    const auto found = json.string_or(key, "");
    return found.ok() ? cut(*found) : std::string();
  };
  error.what = text("what");
  error.where = text("where");
  error.hint = text("hint");
  if (error.what.empty()) error.what = "failed without saying why";
  return error;
}

std::string encode(const TransferAsk& ask) {
  Json json = Json::object({{"want", kWants[static_cast<size_t>(ask.want)]}});
  const auto set = [&](const char* key, const std::string& text) {
    if (!text.empty()) json.set(key, text);
  };
  set("token", ask.token);
  set("model", ask.model);
  set("name", ask.name);
  set("duty", ask.duty);
  return json.dump();
}

Result<TransferAsk> parse_transfer_ask(std::string_view document) {
  FS_ASSIGN(const Json json, Json::parse(document, "the request", {.depth = 4}));
  if (!json.is_object()) return malformed("is no object", "the request");
  TransferAsk ask;
  FS_ASSIGN(const std::string want, word_of(json, "want"));
  const auto found = std::find(kWants.begin(), kWants.end(), want);
  if (found == kWants.end())
    return Error{ErrorCode::kUnsupported, "cannot be asked for here", want.empty() ? "?" : want,
                 "update the older side"};
  ask.want = static_cast<TransferAsk::Want>(found - kWants.begin());
  FS_ASSIGN(ask.token, word_of(json, "token"));
  FS_ASSIGN(ask.model, word_of(json, "model"));
  FS_ASSIGN(ask.name, word_of(json, "name"));
  FS_ASSIGN(ask.duty, word_of(json, "duty"));
  return ask;
}

std::string encode_answer(const Json& answer) { return answer.dump(); }

std::string encode_refusal_of(const Error& error) {
  return Json::object({{"error", error_to_json(error)}}).dump();
}

Result<Json> parse_transfer_answer(std::string_view document) {
  FS_ASSIGN(Json json, Json::parse(document, "the answer", {.depth = 8}));
  if (!json.is_object()) return malformed("is no object", "the answer");
  if (const Json* refusal = json.find_set("error")) return error_from_json(*refusal);
  return json;
}

}  // namespace fastserve
