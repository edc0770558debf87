#include "serve/jinja_expressions.h"

#include <fmt/format.h>

#include <algorithm>

namespace fastserve::jinja {

ExpressionPtr ExpressionParser::choice(bool with_condition) {
  const Level level(*this);
  ExpressionPtr left = logical_or();
  while (with_condition && take_name("if")) {
    ExpressionPtr out = make(Expression::kChoice, std::move(left));
    out->items.push_back(logical_or());
    out->items.push_back(take_name("else") ? choice() : nullptr);
    left = std::move(out);
  }
  return left;
}

/// a or a, b: the latter makes a tuple.
ExpressionPtr ExpressionParser::tuple() {
  ExpressionPtr first = choice();
  if (!is(",")) return first;
  ExpressionPtr out = make(Expression::kTuple, std::move(first));
  while (take(",") && !at_end() && !is(")")) out->items.push_back(choice());
  return out;
}

/// The filters behind a value, | a | b(1); `out` is what they start from.
ExpressionPtr ExpressionParser::filters(ExpressionPtr out) {
  for (;;) {
    if (take("|")) {
      out = make(Expression::kFilter, std::move(out));
      out->text = dotted_name();
      if (is("(")) arguments(*out);
    } else if (is_name("is")) {
      at_++;
      out = test(std::move(out));
    } else if (is("(")) {
      out = make(Expression::kCall, std::move(out));
      arguments(*out);
    } else {
      return out;
    }
  }
}

bool ExpressionParser::take(std::string_view text) {
  if (!is(text)) return false;
  at_++;
  return true;
}
bool ExpressionParser::take_name(std::string_view text) {
  if (!is_name(text)) return false;
  at_++;
  return true;
}
void ExpressionParser::require(std::string_view text) {
  if (!take(text)) unexpected(fmt::format("'{}'", text));
}
std::string ExpressionParser::name() {
  if (peek().kind != Token::kName) unexpected("a name");
  return tokens_[at_++].text;
}
void ExpressionParser::unexpected(const std::string& wanted) const {
  const std::string found = at_end()                        ? "the end of the block"
                            : peek().kind == Token::kNumber ? "a number"
                                                            : fmt::format("'{}'", peek().text);
  fail(fmt::format("expected {}, found {}", wanted, found));
}

ExpressionPtr ExpressionParser::make(Expression::Kind kind, ExpressionPtr first) const {
  auto out = std::make_unique<Expression>();
  out->kind = kind;
  out->line = peek().line;
  if (first) out->items.push_back(std::move(first));
  return out;
}

ExpressionPtr ExpressionParser::binary(const std::string& op, ExpressionPtr left,
                                       ExpressionPtr right) const {
  ExpressionPtr out = make(Expression::kBinary, std::move(left));
  out->text = op;
  out->items.push_back(std::move(right));
  return out;
}

ExpressionPtr ExpressionParser::logical_or() {
  ExpressionPtr left = logical_and();
  while (take_name("or")) left = binary("or", std::move(left), logical_and());
  return left;
}

ExpressionPtr ExpressionParser::logical_and() {
  ExpressionPtr left = logical_not();
  while (take_name("and")) left = binary("and", std::move(left), logical_not());
  return left;
}

ExpressionPtr ExpressionParser::logical_not() {
  const Level level(*this);
  if (!take_name("not")) return comparison();
  ExpressionPtr out = make(Expression::kUnary, logical_not());
  out->text = "not";
  return out;
}

std::string ExpressionParser::comparison_operator() {
  for (const char* op : {"==", "!=", "<=", ">=", "<", ">"})
    if (take(op)) return op;
  if (take_name("in")) return "in";
  if (is_name("not") && tokens_[at_ + 1].kind == Token::kName && tokens_[at_ + 1].text == "in") {
    at_ += 2;
    return "not in";
  }
  return "";
}

ExpressionPtr ExpressionParser::comparison() {
  ExpressionPtr left = arithmetic(0);
  ExpressionPtr out;
  for (std::string op; !(op = comparison_operator()).empty();) {
    if (!out) out = make(Expression::kCompare, std::move(left));
    out->operators.push_back(std::move(op));
    out->items.push_back(arithmetic(0));
  }
  return out ? std::move(out) : std::move(left);
}

/// + and -, then ~, then * / // %, then **: all from the left.
ExpressionPtr ExpressionParser::arithmetic(size_t level) {
  static const std::vector<std::string> kLevels[] = {
      {"+", "-"}, {"~"}, {"*", "/", "//", "%"}, {"**"}};
  if (level == 4) return unary(true);
  ExpressionPtr left = arithmetic(level + 1);
  for (;;) {
    const auto op = std::find_if(kLevels[level].begin(), kLevels[level].end(),
                                 [&](const std::string& one) { return is(one); });
    if (op == kLevels[level].end()) return left;
    at_++;
    left = binary(*op, std::move(left), arithmetic(level + 1));
  }
}

ExpressionPtr ExpressionParser::unary(bool with_filters) {
  const Level level(*this);
  ExpressionPtr out;
  if (is("-") || is("+")) {
    const std::string op = tokens_[at_++].text;
    out = make(Expression::kUnary, unary(false));
    out->text = op;
  } else {
    out = primary();
  }
  out = postfix(std::move(out));
  return with_filters ? filters(std::move(out)) : std::move(out);
}

ExpressionPtr ExpressionParser::literal(Value value) const {
  ExpressionPtr out = make(Expression::kLiteral);
  out->value = std::move(value);
  return out;
}

ExpressionPtr ExpressionParser::primary() {
  const Token& token = peek();
  if (token.kind == Token::kName) {
    at_++;
    if (token.text == "true" || token.text == "True") return literal(true);
    if (token.text == "false" || token.text == "False") return literal(false);
    if (token.text == "none" || token.text == "None") return literal(Value());
    ExpressionPtr out = make(Expression::kName);
    out->text = token.text;
    return out;
  }
  if (token.kind == Token::kNumber) {
    at_++;
    return literal(token.number);
  }
  if (token.kind == Token::kString) {
    std::string text;
    while (peek().kind == Token::kString) text += tokens_[at_++].text;
    return literal(std::move(text));
  }
  if (take("(")) {
    ExpressionPtr out = is(")") ? make(Expression::kTuple) : tuple();
    require(")");
    return out;
  }
  if (take("[")) return items(Expression::kList, "]");
  if (take("{")) return items(Expression::kDict, "}");
  unexpected("an expression");
}

ExpressionPtr ExpressionParser::items(Expression::Kind kind, std::string_view close) {
  ExpressionPtr out = make(kind);
  while (!take(close)) {
    if (!out->items.empty()) {
      require(",");
      if (take(close)) break;
    }
    out->items.push_back(choice());
    if (kind != Expression::kDict) continue;
    require(":");
    out->items.push_back(choice());
  }
  return out;
}

ExpressionPtr ExpressionParser::postfix(ExpressionPtr out) {
  for (;;) {
    if (take(".")) {
      if (peek().kind == Token::kNumber) {
        out = make(Expression::kSubscript, std::move(out));
        out->items.push_back(literal(tokens_[at_++].number));
      } else {
        out = make(Expression::kMember, std::move(out));
        out->text = name();
      }
    } else if (take("[")) {
      out = subscript(std::move(out));
    } else if (is("(")) {
      out = make(Expression::kCall, std::move(out));
      arguments(*out);
    } else {
      return out;
    }
  }
}

ExpressionPtr ExpressionParser::subscript(ExpressionPtr value) {
  ExpressionPtr out = make(Expression::kSubscript, std::move(value));
  ExpressionPtr part = is(":") ? nullptr : choice();
  if (is(":")) {
    out->kind = Expression::kSlice;
    out->items.push_back(std::move(part));
    for (int i = 0; i < 2; i++)
      out->items.push_back(take(":") && !is(":") && !is("]") ? choice() : nullptr);
  } else {
    out->items.push_back(std::move(part));
  }
  require("]");
  return out;
}

void ExpressionParser::arguments(Expression& call) {
  require("(");
  for (bool first = true; !take(")"); first = false) {
    if (!first) {
      require(",");
      if (take(")")) return;
    }
    const bool named = peek().kind == Token::kName && tokens_[at_ + 1].kind == Token::kOperator &&
                       tokens_[at_ + 1].text == "=";
    if (named) {
      std::string key = name();
      at_++;
      call.named.emplace_back(std::move(key), choice());
    } else {
      if (is("*") || is("**")) throw Problem{"unpacking arguments is not supported", true};
      call.items.push_back(choice());
    }
  }
}

std::string ExpressionParser::dotted_name() {
  std::string out = name();
  while (take(".")) out.append(1, '.').append(name());
  return out;
}

ExpressionPtr ExpressionParser::test(ExpressionPtr value) {
  const bool negated = take_name("not");
  ExpressionPtr out = make(Expression::kTest, std::move(value));
  out->text = dotted_name();
  const Token& next = peek();
  const bool opens =
      next.kind == Token::kNumber || next.kind == Token::kString || is("[") || is("{");
  const bool names = next.kind == Token::kName && next.text != "else" && next.text != "or" &&
                     next.text != "and" && next.text != "if" && next.text != "is" &&
                     next.text != "in" && next.text != "not";
  if (is("("))
    arguments(*out);
  else if (opens || names)
    out->items.push_back(postfix(primary()));
  if (!negated) return out;
  out = make(Expression::kUnary, std::move(out));
  out->text = "not";
  return out;
}

}  // namespace fastserve::jinja
