// What a node and a coordinator tell each other when the node joins.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace fastserve {

/// Versions of the join documents that this build speaks. Members that a document has beyond those
/// below are ignored, so that a newer side may add some.
inline constexpr int kJoinProtocolOldest = 1, kJoinProtocolNewest = 1;

/// A node asks for a certificate.
struct JoinAsk {
  int oldest = kJoinProtocolOldest, newest = kJoinProtocolNewest;  ///< what it speaks
  std::string version;                                             ///< of its FastServe, for people
  std::string token;                                               ///< `fsj1-...`
  std::string name;
  std::vector<std::string> roles;
  int lanes = 0;
  std::string request;  ///< PEM: for its key
};

/// The coordinator's answer.
struct JoinGrant {
  std::string version;                 ///< of the coordinator's FastServe
  std::string cluster;                 ///< id
  std::string certificate, authority;  ///< PEM
};

std::string encode(const JoinAsk& ask);
std::string encode(const JoinGrant& grant);
/// A refusal in the grant's place.
std::string encode_refusal(const Error& error);

/// kCorrupt for what is no such document; kUnsupported for one of a node that speaks no version
/// that we do, with which side to update.
Result<JoinAsk> parse_join_ask(std::string_view document);
/// A refusal comes out as the Error that it carries.
Result<JoinGrant> parse_join_grant(std::string_view document);

}  // namespace fastserve
