#include "cluster/tokens.h"

#include <fmt/format.h>

#include "base/entropy.h"
#include "net/sha256.h"

namespace fastserve {
namespace {

constexpr std::string_view kJoinMark = "fsj1", kAccessMark = "fsa1";
constexpr size_t kAuthorityDigits = 64, kSecretDigits = 32;

bool is_hex(std::string_view text, size_t digits) {
  return text.size() == digits &&
         text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

Error no_token(std::string what, std::string hint) {
  return {ErrorCode::kInvalidArgument, std::move(what), "the token", std::move(hint)};
}

}  // namespace

std::string Token::text() const {
  return fmt::format("{}-{}-{}", kind == Kind::kJoin ? kJoinMark : kAccessMark, authority, secret);
}

Token make_token(Token::Kind kind, const std::string& authority) {
  std::byte bytes[kSecretDigits / 2];
  fill_with_entropy(bytes);
  Token token{kind, authority, ""};
  for (const std::byte byte : bytes)
    token.secret += fmt::format("{:02x}", std::to_integer<int>(byte));
  return token;
}

Result<Token> parse_token(std::string_view text) {
  constexpr size_t kMark = kJoinMark.size();
  const std::string_view mark = text.substr(0, kMark);
  if (mark != kJoinMark && mark != kAccessMark) {
    if (mark.starts_with("fsj") || mark.starts_with("fsa"))
      return no_token("is of a kind that this version does not know", "update this FastServe");
    return no_token("is no token", "tokens begin with fsj1- or fsa1-: fsctl cluster token create");
  }
  constexpr size_t kSize = kMark + 1 + kAuthorityDigits + 1 + kSecretDigits;
  if (text.size() != kSize)
    return no_token(fmt::format("has {} characters instead of {}", text.size(), kSize),
                    "copy it whole, without spaces or line breaks");
  Token token;
  token.kind = mark == kJoinMark ? Token::Kind::kJoin : Token::Kind::kAccess;
  token.authority = text.substr(kMark + 1, kAuthorityDigits);
  token.secret = text.substr(kSize - kSecretDigits);
  if (text[kMark] != '-' || text[kSize - kSecretDigits - 1] != '-' ||
      !is_hex(token.authority, kAuthorityDigits) || !is_hex(token.secret, kSecretDigits))
    return no_token("is damaged: its parts are not hexadecimal", "copy it whole");
  return token;
}

Result<Token> parse_token(std::string_view text, Token::Kind kind) {
  FS_ASSIGN(Token token, parse_token(text));
  if (token.kind == kind) return token;
  if (kind == Token::Kind::kJoin)
    return no_token("is for clients and lets no node join",
                    "fsctl cluster token create --kind join");
  return no_token("is for nodes that join and lets no client in",
                  "fsctl cluster token create --kind read|run|admin");
}

std::string secret_hash(std::string_view secret) { return sha256(secret); }

bool equal_in_constant_time(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); i++)
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]);
  // Through a volatile, so that the loop is not turned into one that stops early.
  volatile unsigned seen = difference;
  return seen == 0;
}

}  // namespace fastserve
