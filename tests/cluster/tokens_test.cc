#include "cluster/tokens.h"

#include <doctest/doctest.h>

#include <set>

#include "cluster/access_role.h"

using namespace fastserve;

namespace {

const std::string kAuthority(64, 'a');

std::string said(const Result<Token>& token) { return token.ok() ? "" : token.error().message(); }
bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a token's text tells its kind, its authority and its secret") {
  for (const auto kind : {Token::Kind::kJoin, Token::Kind::kAccess}) {
    const Token made = make_token(kind, kAuthority);
    CHECK(made.text().starts_with(kind == Token::Kind::kJoin ? "fsj1-" : "fsa1-"));
    const Token read = parse_token(made.text()).value();
    CHECK(read.kind == kind);
    CHECK(read.authority == kAuthority);
    CHECK(read.secret == made.secret);
    CHECK(read.secret.size() == 32);
  }
}

TEST_CASE("no two tokens have the same secret") {
  std::set<std::string> secrets;
  for (int i = 0; i < 1000; i++) secrets.insert(make_token(Token::Kind::kJoin, kAuthority).secret);
  CHECK(secrets.size() == 1000);
}

TEST_CASE("what is no token is refused with what is wrong with it, and without its secret") {
  const std::string secret = "0123456789abcdef0123456789abcdef";
  const std::string good = "fsj1-" + kAuthority + "-" + secret;
  REQUIRE(parse_token(good).ok());
  CHECK(contains(said(parse_token("")), "is no token"));
  CHECK(contains(said(parse_token("hunter2")), "is no token"));
  CHECK(contains(said(parse_token("fsj2" + good.substr(4))), "does not know"));
  CHECK(contains(said(parse_token(good + "\n")), "103 characters instead of 102"));
  CHECK(contains(said(parse_token(good.substr(0, 101))), "101 characters"));
  std::string upper = good;
  upper[80] = 'A';
  CHECK(contains(said(parse_token(upper)), "damaged"));
  std::string joined = good;
  joined[69] = 'a';
  CHECK(contains(said(parse_token(joined)), "damaged"));
  for (const std::string& bad : {good + "0", upper, joined, "x" + good})
    CHECK_FALSE(contains(said(parse_token(bad)), secret.substr(4)));
}

TEST_CASE("a token of the other kind is refused with the command that makes the right one") {
  const std::string join = make_token(Token::Kind::kJoin, kAuthority).text();
  const std::string access = make_token(Token::Kind::kAccess, kAuthority).text();
  CHECK(parse_token(join, Token::Kind::kJoin).ok());
  CHECK(contains(said(parse_token(join, Token::Kind::kAccess)), "--kind read|run|admin"));
  CHECK(contains(said(parse_token(access, Token::Kind::kJoin)), "--kind join"));
}

TEST_CASE("what is kept of a secret is its SHA-256") {
  CHECK(secret_hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST_CASE("texts are compared whole") {
  CHECK(equal_in_constant_time("", ""));
  CHECK(equal_in_constant_time("secret", "secret"));
  CHECK_FALSE(equal_in_constant_time("secret", "secreT"));
  CHECK_FALSE(equal_in_constant_time("Secret", "secret"));
  CHECK_FALSE(equal_in_constant_time("secret", "secret1"));
}

TEST_CASE("roles have names") {
  for (const auto role : {AccessRole::kRead, AccessRole::kRun, AccessRole::kAdmin})
    CHECK(parse_access_role(access_role_name(role)).value() == role);
  CHECK(contains(parse_access_role("root").error().message(), "read, run and admin"));
}
