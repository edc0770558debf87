// Expressions from their tokens, with Jinja's precedence.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "serve/jinja_syntax.h"

namespace fastserve::jinja {

inline constexpr int kDeepest = 100;  ///< nested expressions or blocks

/// Reads the tokens of one segment from `at` on. Throws Problem.
class ExpressionParser {
 public:
  ExpressionParser(const std::vector<Token>& tokens, size_t& at) : tokens_(tokens), at_(at) {}

  ExpressionPtr choice(bool with_condition = true);
  ExpressionPtr tuple();  ///< a, or a, b: the latter makes a tuple
  /// The filters behind a value, | a | b(1); `out` is what they start from.
  ExpressionPtr filters(ExpressionPtr out);

  bool at_end() const { return peek().kind == Token::kEnd; }
  bool is(std::string_view text) const {
    return peek().kind == Token::kOperator && peek().text == text;
  }
  bool is_name(std::string_view text) const {
    return peek().kind == Token::kName && peek().text == text;
  }
  bool take(std::string_view text);
  bool take_name(std::string_view text);
  void require(std::string_view text);
  std::string name();
  [[noreturn]] void unexpected(const std::string& wanted) const;

 private:
  struct Level {
    explicit Level(ExpressionParser& parser) : depth(parser.depth_) {
      if (++depth > kDeepest) fail("expressions are nested too deeply");
    }
    ~Level() { depth--; }
    int& depth;
  };

  const Token& peek() const { return tokens_[at_]; }
  ExpressionPtr make(Expression::Kind kind, ExpressionPtr first = nullptr) const;
  ExpressionPtr binary(const std::string& op, ExpressionPtr left, ExpressionPtr right) const;
  ExpressionPtr literal(Value value) const;
  ExpressionPtr logical_or();
  ExpressionPtr logical_and();
  ExpressionPtr logical_not();
  std::string comparison_operator();
  ExpressionPtr comparison();
  ExpressionPtr arithmetic(size_t level);
  ExpressionPtr unary(bool with_filters);
  ExpressionPtr primary();
  ExpressionPtr items(Expression::Kind kind, std::string_view close);
  ExpressionPtr postfix(ExpressionPtr out);
  ExpressionPtr subscript(ExpressionPtr value);
  void arguments(Expression& call);
  std::string dotted_name();
  ExpressionPtr test(ExpressionPtr value);

  const std::vector<Token>& tokens_;
  size_t& at_;
  int depth_ = 0;
};

}  // namespace fastserve::jinja
