#include "net/join_documents.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/json.h"

namespace fastserve {
namespace {

// What is shown to people must not fill their screens.
constexpr size_t kLongestWord = 256, kLongestText = 2048, kLongestHeard = 8192,
                 kLongestPem = 16 << 10, kMostRoles = 16;

Error malformed(std::string what, std::string where) {
  return {ErrorCode::kCorrupt, std::move(what), std::move(where),
          "the peer may be of another version, or no FastServe"};
}

Result<std::string> text_of(const Json& json, std::string_view key, size_t longest) {
  FS_ASSIGN(std::string text, json.string_or(key, ""));
  if (text.size() <= longest) return text;
  return malformed(fmt::format("is longer than {} bytes", longest), std::string(key));
}

Result<int> number_of(const Json& json, std::string_view key, int fallback, int most) {
  FS_ASSIGN(const int64_t number, json.int_or(key, fallback));
  if (number >= 0 && number <= most) return static_cast<int>(number);
  return malformed(fmt::format("is {}, and not 0 to {}", number, most), std::string(key));
}

Result<std::vector<std::string>> roles_of(const Json& json) {
  std::vector<std::string> roles;
  const Json* member = json.find_set("roles");
  if (member == nullptr) return roles;
  if (!member->is_array() || member->as_array().size() > kMostRoles)
    return malformed(fmt::format("is no list of up to {} roles", kMostRoles), "roles");
  for (const Json& role : member->as_array()) {
    if (!role.is_string() || role.as_string().size() > kLongestWord)
      return malformed("holds what is no role", "roles");
    roles.push_back(role.as_string());
  }
  return roles;
}

Result<Json> object_of(std::string_view document, const char* where) {
  FS_ASSIGN(Json json, Json::parse(document, where, {.depth = 8}));
  if (!json.is_object()) return malformed("is no object", where);
  return json;
}

Error too_far_apart(int oldest, int newest, const std::string& version) {
  const bool node_is_older = newest < kJoinProtocolOldest;
  return {ErrorCode::kUnsupported,
          fmt::format("the node (FastServe {}) speaks versions {} to {} of the join protocol, the "
                      "coordinator {} to {}",
                      version.empty() ? "of unknown version" : version, oldest, newest,
                      kJoinProtocolOldest, kJoinProtocolNewest),
          "", node_is_older ? "update the node" : "update the coordinator"};
}

}  // namespace

std::string encode(const JoinAsk& ask) {
  return Json::object({{"oldest", ask.oldest},
                       {"newest", ask.newest},
                       {"version", ask.version},
                       {"token", ask.token},
                       {"name", ask.name},
                       {"roles", Json::array_of(ask.roles)},
                       {"lanes", ask.lanes},
                       {"request", ask.request}})
      .dump();
}

std::string encode(const JoinGrant& grant) {
  return Json::object({{"version", grant.version},
                       {"cluster", grant.cluster},
                       {"certificate", grant.certificate},
                       {"authority", grant.authority}})
      .dump();
}

std::string encode_refusal(const Error& error) {
  const auto cut = [](const std::string& text) { return text.substr(0, kLongestText); };
  const Json refusal = Json::object({{"code", static_cast<int>(error.code)},
                                     {"what", cut(error.what)},
                                     {"where", cut(error.where)},
                                     {"hint", cut(error.hint)}});
  return Json::object({{"error", refusal}}).dump();
}

Result<JoinAsk> parse_join_ask(std::string_view document) {
  FS_ASSIGN(const Json json, object_of(document, "the request to join"));
  JoinAsk ask;
  FS_ASSIGN(ask.oldest, number_of(json, "oldest", 0, 1 << 20));
  FS_ASSIGN(ask.newest, number_of(json, "newest", 0, 1 << 20));
  FS_ASSIGN(ask.version, text_of(json, "version", kLongestWord));
  // What a version that we do not speak says further on is not ours to judge.
  if (ask.newest < kJoinProtocolOldest || ask.oldest > kJoinProtocolNewest)
    return too_far_apart(ask.oldest, ask.newest, ask.version);
  FS_ASSIGN(ask.token, text_of(json, "token", kLongestWord));
  FS_ASSIGN(ask.name, text_of(json, "name", kLongestWord));
  FS_ASSIGN(ask.roles, roles_of(json));
  FS_ASSIGN(ask.lanes, number_of(json, "lanes", 0, 1 << 16));
  FS_ASSIGN(ask.request, text_of(json, "request", kLongestPem));
  return ask;
}

Result<JoinGrant> parse_join_grant(std::string_view document) {
  FS_ASSIGN(const Json json, object_of(document, "the answer to joining"));
  if (const Json* refusal = json.find_set("error")) {
    Error error;
    FS_ASSIGN(const int code, number_of(*refusal, "code", 0, 1 << 20));
    // A newer coordinator may know kinds of errors that we do not.
    const bool known = code >= 1 && code <= static_cast<int>(ErrorCode::kInternal);
    error.code = known ? static_cast<ErrorCode>(code) : ErrorCode::kInvalidArgument;
    FS_ASSIGN(error.what, text_of(*refusal, "what", kLongestHeard));
    FS_ASSIGN(error.where, text_of(*refusal, "where", kLongestHeard));
    FS_ASSIGN(error.hint, text_of(*refusal, "hint", kLongestHeard));
    if (error.what.empty()) error.what = "refuses this node without saying why";
    return error;
  }
  JoinGrant grant;
  FS_ASSIGN(grant.version, text_of(json, "version", kLongestWord));
  FS_ASSIGN(grant.cluster, text_of(json, "cluster", kLongestWord));
  FS_ASSIGN(grant.certificate, text_of(json, "certificate", kLongestPem));
  FS_ASSIGN(grant.authority, text_of(json, "authority", kLongestPem));
  return grant;
}

}  // namespace fastserve
