// Text, expressions and statements of a template, and the blanks between them.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "serve/jinja_syntax.h"

namespace fastserve::jinja {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name(char c) {
  return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}

void append_code_point(uint32_t code, std::string& out) {
  if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) fail("a string escape is no character");
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
  } else if (code < 0x10000) {
    out += {static_cast<char>(0xE0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 63)),
            static_cast<char>(0x80 | (code & 63))};
  } else {
    out += {static_cast<char>(0xF0 | code >> 18), static_cast<char>(0x80 | (code >> 12 & 63)),
            static_cast<char>(0x80 | (code >> 6 & 63)), static_cast<char>(0x80 | (code & 63))};
  }
}

class Lexer {
 public:
  explicit Lexer(std::string_view text) {
    // Every kind of line end is read as \n, and one at the end of the file is dropped.
    for (size_t i = 0; i < text.size(); i++) {
      text_ += text[i] == '\r' ? '\n' : text[i];
      if (text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n') i++;
    }
    if (text_.ends_with('\n')) text_.pop_back();
  }

  std::vector<Segment> run() {
    while (at_ < text_.size()) {
      const size_t open = next_opening();
      if (open == text_.npos) {
        put_text(text_.substr(at_));
        break;
      }
      const char kind = text_[open + 1];
      open_marker(open, kind != '{');
      if (kind == '#')
        comment();
      else if (kind == '%' && raw())
        continue;
      else
        code(kind == '{' ? Segment::kExpression : Segment::kStatement);
    }
    return std::move(out_);
  }

 private:
  size_t next_opening() const {
    for (size_t i = text_.find('{', at_); i != text_.npos; i = text_.find('{', i + 1))
      if (i + 1 < text_.size() &&
          std::string_view("{%#").find(text_[i + 1]) != std::string_view::npos)
        return i;
    return text_.npos;
  }

  bool ahead(std::string_view marker) const {
    return std::string_view(text_).substr(at_).starts_with(marker);
  }

  void put_text(std::string text) {
    if (!text.empty()) out_.push_back({Segment::kText, std::move(text), {}, line_});
  }

  void advance(size_t to) {
    line_ += static_cast<int>(std::count(text_.begin() + static_cast<ptrdiff_t>(at_),
                                         text_.begin() + static_cast<ptrdiff_t>(to), '\n'));
    at_ = to;
  }

  /// Takes the text before a marker, less the blanks that the marker eats, and the marker.
  void open_marker(size_t open, bool lstrip) {
    put_text(text_before(open, lstrip));
    advance(open + 2);
    if (ahead("-") || ahead("+")) at_++;
  }

  std::string text_before(size_t open, bool lstrip) const {
    const std::string_view before = std::string_view(text_).substr(at_, open - at_);
    const char sign = open + 2 < text_.size() ? text_[open + 2] : ' ';
    if (sign == '-') return std::string(strip(before, false, true, nullptr));
    if (sign == '+' || !lstrip) return std::string(before);
    const size_t line = before.rfind('\n');
    if (line == before.npos && !line_starting_) return std::string(before);
    const size_t from = line == before.npos ? 0 : line + 1;
    const bool blank = strip(before.substr(from), true, false, nullptr).empty();
    return std::string(blank ? before.substr(0, from) : before);
  }

  /// Takes "-%}" with all blanks behind it, "+%}", or "%}" with one line end behind a block.
  bool close_marker(std::string_view close, bool trims) {
    const size_t begin = at_;
    const std::string dashed = fmt::format("-{}", close), kept = fmt::format("+{}", close);
    if (ahead(dashed)) {
      const std::string_view rest = std::string_view(text_).substr(at_ + dashed.size());
      advance(text_.size() - strip(rest, true, false, nullptr).size());
    } else if (trims && ahead(kept)) {
      at_ += kept.size();
    } else if (ahead(close)) {
      at_ += close.size();
      if (trims && ahead("\n")) advance(at_ + 1);
    } else {
      return false;
    }
    line_starting_ = at_ > begin && text_[at_ - 1] == '\n';
    return true;
  }

  void comment() {
    const size_t end = text_.find("#}", at_);
    if (end == text_.npos) fail("a comment has no end");
    const bool signed_end = end > at_ && (text_[end - 1] == '-' || text_[end - 1] == '+');
    advance(signed_end ? end - 1 : end);
    close_marker("#}", true);
  }

  /// {% raw %} ... {% endraw %}; false when the block is another one.
  bool raw() {
    const size_t begin = at_;
    if (!word("raw") || !close_marker("%}", false)) {
      at_ = begin;
      return false;
    }
    for (size_t open = text_.find("{%", at_); open != text_.npos;
         open = text_.find("{%", open + 1)) {
      const size_t body = at_;
      const int line = line_;
      const std::string kept = text_before(open, true);
      advance(open + 2);
      if (ahead("-") || ahead("+")) at_++;
      if (word("endraw") && close_marker("%}", true)) {
        put_text(kept);
        return true;
      }
      at_ = body, line_ = line;
    }
    fail("a raw block has no end");
  }

  void skip_blanks() {
    while (at_ < text_.size() &&
           std::string_view(" \t\n\v\f").find(text_[at_]) != std::string_view::npos)
      advance(at_ + 1);
  }

  bool word(std::string_view expected) {
    skip_blanks();
    if (!ahead(expected)) return false;
    const size_t end = at_ + expected.size();
    if (end < text_.size() && is_name(text_[end])) return false;
    at_ = end;
    skip_blanks();
    return true;
  }

  void code(Segment::Kind kind) {
    Segment segment{kind, "", {}, line_};
    const std::string_view close = kind == Segment::kExpression ? "}}" : "%}";
    size_t depth = 0;
    for (;;) {
      skip_blanks();
      if (at_ >= text_.size()) fail("an expression or a block has no end");
      if (depth == 0 && close_marker(close, kind == Segment::kStatement)) break;
      Token token = next_token();
      if (token.kind == Token::kOperator) {
        const char c = token.text[0];
        if (c == '(' || c == '[' || c == '{') depth++;
        if ((c == ')' || c == ']' || c == '}') && depth-- == 0)
          fail(fmt::format("unexpected '{}'", token.text));
      }
      segment.tokens.push_back(std::move(token));
    }
    segment.tokens.push_back({Token::kEnd, "", {}, line_});
    out_.push_back(std::move(segment));
  }

  Token next_token() {
    const char c = text_[at_];
    Token token{Token::kOperator, "", {}, line_};
    if (c == '"' || c == '\'') {
      token.kind = Token::kString;
      token.text = string_literal(c);
    } else if (is_digit(c)) {
      token.kind = Token::kNumber;
      token.number = number_literal();
    } else if (is_name(c)) {
      token.kind = Token::kName;
      while (at_ < text_.size() && is_name(text_[at_])) token.text += text_[at_++];
    } else {
      for (const std::string_view two : {"//", "**", "==", "!=", ">=", "<="})
        if (ahead(two)) token.text = two;
      if (token.text.empty()) token.text = c;
      if (token.text.size() == 1 &&
          std::string_view("+-/*%~[](){}<>=.:|,;").find(c) == std::string_view::npos)
        fail(fmt::format("unexpected character '{}'", c));
      at_ += token.text.size();
    }
    return token;
  }

  Value number_literal() {
    std::string digits;
    const auto take = [&] {
      while (at_ < text_.size() && (is_digit(text_[at_]) || text_[at_] == '_')) {
        if (text_[at_] != '_') digits += text_[at_];
        at_++;
      }
    };
    take();
    const auto digit_at = [&](size_t i) { return i < text_.size() && is_digit(text_[i]); };
    bool whole = true;
    if (ahead(".") && digit_at(at_ + 1)) {
      whole = false;
      digits += text_[at_++];
      take();
    }
    if (ahead("e") || ahead("E")) {
      const size_t sign =
          at_ + 1 < text_.size() && (text_[at_ + 1] == '+' || text_[at_ + 1] == '-');
      if (digit_at(at_ + 1 + sign)) {
        whole = false;
        digits += text_.substr(at_, 1 + sign);
        at_ += 1 + sign;
        take();
      }
    }
    const char *begin = digits.data(), *end = begin + digits.size();
    int64_t integer = 0;
    double real = 0;
    const auto read =
        whole ? std::from_chars(begin, end, integer).ec : std::from_chars(begin, end, real).ec;
    if (read != std::errc()) fail(fmt::format("the number {} is too large", digits));
    return whole ? Value(integer) : Value(real);
  }

  /// Python's escapes.
  std::string string_literal(char quote) {
    std::string out;
    for (at_++;; at_++) {
      if (at_ >= text_.size()) fail("a string has no end");
      if (text_[at_] == quote) break;
      if (text_[at_] == '\n') line_++;
      if (text_[at_] != '\\') {
        out += text_[at_];
        continue;
      }
      if (++at_ >= text_.size()) fail("a string has no end");
      escape(text_[at_], out);
    }
    at_++;
    return out;
  }

  void escape(char c, std::string& out) {
    constexpr std::string_view kNames = "ntrabfv\\'\"", kMeanings = "\n\t\r\a\b\f\v\\'\"";
    if (const size_t at = kNames.find(c); at != kNames.npos) {
      out += kMeanings[at];
    } else if (c == 'x' || c == 'u' || c == 'U') {
      const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      number_escape(1, digits, 16, out);
    } else if (c >= '0' && c <= '7') {
      size_t digits = 1;
      while (digits < 3 && at_ + digits < text_.size() && text_[at_ + digits] >= '0' &&
             text_[at_ + digits] <= '7')
        digits++;
      number_escape(0, digits, 8, out);
    } else if (c == '\n') {
      line_++;  // the line goes on
    } else {
      out += {'\\', c};
    }
  }

  void number_escape(size_t skip, size_t digits, int base, std::string& out) {
    const std::string_view text = std::string_view(text_).substr(at_ + skip, digits);
    uint32_t code = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), code, base);
    if (text.size() != digits || error != std::errc() || end != text.data() + digits)
      fail("a string escape is cut off");
    append_code_point(code, out);
    at_ += skip + digits - 1;
  }

  std::string text_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Segment> out_;
};

}  // namespace

std::vector<Segment> cut_template(std::string_view text) { return Lexer(text).run(); }

}  // namespace fastserve::jinja
