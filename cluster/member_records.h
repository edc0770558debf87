// What a coordinator remembers of its nodes and tokens, as the state store keeps it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "cluster/control.h"

namespace fastserve {

/// A token, without its secret.
struct TokenRecord {
  std::string id;                       ///< how people name it: 8 hex digits
  std::string hash;                     ///< secret_hash() of its secret
  bool joins = false;                   ///< lets nodes join; else lets a client in
  AccessRole role = AccessRole::kRead;  ///< of a client
  std::string label;
  int64_t created_unix = 0, expires_unix = 0;
  int64_t uses_left = -1;  ///< nodes that may still join by it; -1: any number

  static constexpr const char* kPrefix = "membership/token/";
  std::string key() const { return kPrefix + id; }
  std::string encode() const;
  static Result<TokenRecord> decode(std::string_view text, const std::string& key);
};

/// What people may see of a token: an object.
Json describe_token(const TokenRecord& token, int64_t now_unix);

/// A node that has joined and was not removed.
struct MemberRecord {
  std::string name;
  std::vector<std::string> roles;
  int lanes = 0;
  std::string version;
  int64_t joined_unix = 0, certificate_expires_unix = 0;
  bool draining = false;
  /// NodeClaim::key of the certificates that are let in: the newest, and the one before it until
  /// the newest has been seen.
  std::vector<std::string> keys;

  static constexpr const char* kPrefix = "membership/node/";
  std::string key() const { return kPrefix + name; }
  std::string encode() const;
  static Result<MemberRecord> decode(std::string_view text, const std::string& key);
};

/// The cluster itself.
struct ClusterRecord {
  static constexpr const char* kKey = "membership/cluster";
  std::string cluster;
  uint64_t epoch = 0;       ///< of the last coordinator that opened this state
  int64_t opened_unix = 0;  ///< when the last one did

  std::string encode() const;
  static Result<ClusterRecord> decode(std::string_view text);
};

}  // namespace fastserve
