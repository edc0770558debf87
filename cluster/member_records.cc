#include "cluster/member_records.h"

#include "base/json.h"
#include "cluster/access_role.h"

namespace fastserve {
namespace {

Error damaged(const std::string& key) {
  return {ErrorCode::kCorrupt, "is no record of this kind", "record " + key,
          "restore the cluster's folder from a backup"};
}

Result<Json> object_of(std::string_view text, const std::string& key) {
  FS_ASSIGN(Json json, Json::parse(text, "record " + key));
  if (!json.is_object()) return damaged(key);
  return json;
}

Result<std::vector<std::string>> texts_of(const Json& json, std::string_view member,
                                          const std::string& key) {
  std::vector<std::string> texts;
  const Json* list = json.find_set(member);
  if (list == nullptr || !list->is_array()) return damaged(key);
  for (const Json& item : list->as_array()) {
    if (!item.is_string()) return damaged(key);
    texts.push_back(item.as_string());
  }
  return texts;
}

}  // namespace

Json describe_token(const TokenRecord& token, int64_t now_unix) {
  return Json::object({{"id", token.id},
                       {"kind", token.joins ? "join" : access_role_name(token.role)},
                       {"label", token.label},
                       {"created_unix", token.created_unix},
                       {"expires_unix", token.expires_unix},
                       {"expired", token.expires_unix <= now_unix},
                       {"uses_left", token.uses_left < 0 ? Json() : token.uses_left}});
}

std::string TokenRecord::encode() const {
  return Json::object({{"id", id},
                       {"hash", hash},
                       {"joins", joins},
                       {"role", access_role_name(role)},
                       {"label", label},
                       {"created", created_unix},
                       {"expires", expires_unix},
                       {"uses_left", uses_left}})
      .dump();
}

Result<TokenRecord> TokenRecord::decode(std::string_view text, const std::string& key) {
  FS_ASSIGN(const Json json, object_of(text, key));
  TokenRecord token;
  FS_ASSIGN(token.id, json.string_or("id", ""));
  FS_ASSIGN(token.hash, json.string_or("hash", ""));
  FS_ASSIGN(token.joins, json.bool_or("joins", false));
  FS_ASSIGN(const std::string role, json.string_or("role", ""));
  FS_ASSIGN(token.role, parse_access_role(role));
  FS_ASSIGN(token.label, json.string_or("label", ""));
  FS_ASSIGN(token.created_unix, json.int_or("created", 0));
  FS_ASSIGN(token.expires_unix, json.int_or("expires", 0));
  FS_ASSIGN(token.uses_left, json.int_or("uses_left", -1));
  if (token.key() != key || token.hash.empty()) return damaged(key);
  return token;
}

std::string MemberRecord::encode() const {
  return Json::object({{"name", name},
                       {"roles", Json::array_of(roles)},
                       {"lanes", lanes},
                       {"version", version},
                       {"joined", joined_unix},
                       {"certificate_expires", certificate_expires_unix},
                       {"draining", draining},
                       {"keys", Json::array_of(keys)}})
      .dump();
}

Result<MemberRecord> MemberRecord::decode(std::string_view text, const std::string& key) {
  FS_ASSIGN(const Json json, object_of(text, key));
  MemberRecord node;
  FS_ASSIGN(node.name, json.string_or("name", ""));
  FS_ASSIGN(node.roles, texts_of(json, "roles", key));
  FS_ASSIGN(const int64_t lanes, json.int_or("lanes", 0));
  node.lanes = static_cast<int>(lanes);
  FS_ASSIGN(node.version, json.string_or("version", ""));
  FS_ASSIGN(node.joined_unix, json.int_or("joined", 0));
  FS_ASSIGN(node.certificate_expires_unix, json.int_or("certificate_expires", 0));
  FS_ASSIGN(node.draining, json.bool_or("draining", false));
  FS_ASSIGN(node.keys, texts_of(json, "keys", key));
  if (node.key() != key || node.keys.empty()) return damaged(key);
  return node;
}

std::string ClusterRecord::encode() const {
  return Json::object({{"cluster", cluster}, {"epoch", epoch}, {"opened", opened_unix}}).dump();
}

Result<ClusterRecord> ClusterRecord::decode(std::string_view text) {
  FS_ASSIGN(const Json json, object_of(text, kKey));
  ClusterRecord record;
  FS_ASSIGN(record.cluster, json.string_or("cluster", ""));
  FS_ASSIGN(const int64_t epoch, json.int_or("epoch", -1));
  FS_ASSIGN(record.opened_unix, json.int_or("opened", 0));
  if (epoch < 0) return damaged(kKey);
  record.epoch = static_cast<uint64_t>(epoch);
  return record;
}

}  // namespace fastserve
