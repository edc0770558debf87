// What lets a node join and a client in: texts that pin the cluster's authority and carry a secret.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace fastserve {

/// `fsj1-AUTHORITY-SECRET` lets nodes join, `fsa1-AUTHORITY-SECRET` lets a client in. AUTHORITY is
/// the fingerprint of the authority's certificate (SHA-256, 64 hex digits): whoever holds a token
/// knows which cluster must answer, so there is nothing to trust on first use. SECRET is 128 random
/// bits, 32 hex digits.
///
/// Whoever checks tokens keeps secret_hash() alone, so that a copy of its records lets nobody in.
/// One round of SHA-256 without salt is enough for that: stretching and salting guard secrets that
/// can be guessed, and 128 random bits cannot. XXH3 would not do: it can be run backwards.
struct Token {
  enum class Kind : uint8_t { kJoin, kAccess };
  Kind kind = Kind::kJoin;
  std::string authority, secret;

  std::string text() const;
};

/// With a fresh secret from the operating system.
Token make_token(Token::Kind kind, const std::string& authority);

/// kInvalidArgument says in what way `text` is no token, without repeating its secret.
Result<Token> parse_token(std::string_view text);
/// The same, and it must be of that kind.
Result<Token> parse_token(std::string_view text, Token::Kind kind);

std::string secret_hash(std::string_view secret);

/// Whether two texts are equal, in a time that tells nothing of where they differ.
bool equal_in_constant_time(std::string_view a, std::string_view b);

}  // namespace fastserve
