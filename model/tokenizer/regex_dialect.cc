#include "model/tokenizer/regex_dialect.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace fastserve {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

constexpr std::array<std::string_view, 37> kCategories = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd", "Nl",
    "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk",
    "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Co", "Cs", "Cn"};

/// Bracket names, which mean something else as a script or not the same in both engines.
constexpr std::array<std::string_view, 17> kBrackets = {
    "alnum", "alpha", "blank", "cntrl", "digit", "graph",  "lower",    "print",  "punct",
    "space", "upper", "word",  "ascii", "any",   "xdigit", "assigned", "newline"};

/// Letter pairs that some single character folds to (the sharp s, the f ligatures): Oniguruma
/// matches that character for the pair when case is ignored, PCRE2 does not.
constexpr std::array<std::string_view, 5> kFoldedPairs = {"ss", "ff", "fi", "fl", "st"};

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : in_(pattern), where_(where) {}

  Result<std::string> run() {
    FS_TRY(check_case_folding());
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        FS_TRY(escape(false));
      } else if (c == '[') {
        FS_TRY(character_class());
      } else if (c == '(' && next_is('?')) {
        FS_TRY(group());
      } else if (c == '{') {
        FS_TRY(interval());
      } else {
        out_ += c;
        at_++;
      }
    }
    return std::move(out_);
  }

 private:
  bool next_is(char c) const { return at_ + 1 < in_.size() && in_[at_ + 1] == c; }

  Error unsupported(std::string what) const {
    return {ErrorCode::kUnsupported,
            fmt::format("{} is not supported (offset {} of the pattern \"{}\")", what, at_, in_),
            where_, "write the pattern without it, or use another tokenizer"};
  }

  Status check_case_folding() const {
    if (in_.find("(?i") == in_.npos) return {};
    const std::string folded = lower(in_);
    for (const std::string_view pair : kFoldedPairs)
      if (folded.find(pair) != folded.npos)
        return unsupported(fmt::format("\"{}\" without regard to case", pair));
    for (const char c : in_)
      if (static_cast<unsigned char>(c) >= 0x80)
        return unsupported("a character outside ASCII without regard to case");
    return {};
  }

  /// `text` is a list of what a character class may hold.
  void put_set(std::string_view text, bool negated, bool in_class) {
    if (in_class)
      out_ += text;
    else
      out_ += fmt::format("[{}{}]", negated ? "^" : "", text);
  }

  Status escape(bool in_class) {
    if (at_ + 1 >= in_.size()) return unsupported("a backslash without a character behind it");
    const char c = in_[at_ + 1];
    // Outside a character class Oniguruma also counts Latin-1's superscripts and fractions.
    const std::string word = std::string("\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}") +
                             (in_class ? "" : "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}");
    constexpr std::string_view kHex = "0-9A-Fa-f";
    switch (c) {
      case 's':
        out_ += "\\p{White_Space}";
        break;
      case 'S':
        out_ += "\\P{White_Space}";
        break;
      case 'd':
        out_ += "\\p{Nd}";
        break;
      case 'D':
        out_ += "\\P{Nd}";
        break;
      case 'w':
        put_set(word, false, in_class);
        break;
      case 'h':
        put_set(kHex, false, in_class);
        break;
      case 'W':
      case 'H':
        if (in_class) return unsupported(fmt::format("\\{} in a character class", c));
        put_set(c == 'W' ? std::string_view(word) : kHex, true, false);
        break;
      case 'v':
        out_ += "\\x0b";
        break;
      case 'p':
      case 'P':
        return property();
      case 'x':
        return hexadecimal();
      case 'u':
        return four_digits();
      default:
        if (!pass_escape(c, in_class)) return unsupported(fmt::format("\\{}", c));
        out_ += {'\\', c};
    }
    at_ += 2;
    return {};
  }

  static bool pass_escape(char c, bool in_class) {
    if (is_letter(c))
      return std::string_view(in_class ? "rntfae" : "rntfaeAzZ").find(c) != std::string_view::npos;
    if (is_digit(c)) return c != '0' && !in_class;
    return static_cast<unsigned char>(c) < 0x80;
  }

  Status property() {
    const size_t close = in_.find('}', at_);
    if (at_ + 2 >= in_.size() || in_[at_ + 2] != '{' || close == in_.npos)
      return unsupported("a property without braces");
    std::string_view name = in_.substr(at_ + 3, close - at_ - 3);
    bool negated = in_[at_ + 1] == 'P';
    if (!name.empty() && name[0] == '^') negated = !negated, name.remove_prefix(1);
    const bool is_category =
        std::find(kCategories.begin(), kCategories.end(), name) != kCategories.end();
    const bool is_bracket =
        std::find(kBrackets.begin(), kBrackets.end(), lower(name)) != kBrackets.end();
    const bool is_name = !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
      return is_letter(c) || c == '_';
    });
    if (!is_name || (is_bracket && !is_category))
      return unsupported(fmt::format("the property \"{}\"", name));
    out_ += fmt::format("\\{}{{{}{}}}", negated ? 'P' : 'p', is_category ? "" : "sc:", name);
    at_ = close + 1;
    return {};
  }

  Status put_code_point(std::string_view digits, size_t consumed) {
    if (digits.empty() || digits.size() > 6 || !std::all_of(digits.begin(), digits.end(), is_hex))
      return unsupported("a character number of that form");
    out_ += fmt::format("\\x{{{}}}", digits);
    at_ += consumed;
    return {};
  }

  Status hexadecimal() {  // \x41 or \x{1F600}; two digits from 80 on are a byte to Oniguruma
    if (at_ + 2 < in_.size() && in_[at_ + 2] == '{') {
      const size_t close = in_.find('}', at_);
      if (close == in_.npos) return unsupported("\\x{ without }");
      return put_code_point(in_.substr(at_ + 3, close - at_ - 3), close + 1 - at_);
    }
    const std::string_view digits = in_.substr(std::min(in_.size(), at_ + 2), 2);
    if (digits.size() < 2 || digits[0] > '7') return unsupported("a byte written as \\x");
    return put_code_point(digits, 4);
  }

  Status four_digits() {
    const std::string_view digits = in_.substr(std::min(in_.size(), at_ + 2), 4);
    if (digits.size() < 4) return unsupported("\\u with fewer than four digits");
    return put_code_point(digits, 6);
  }

  Status character_class() {
    out_ += '[';
    at_++;
    if (at_ < in_.size() && in_[at_] == '^') out_ += in_[at_++];
    if (at_ < in_.size() && in_[at_] == ']') return unsupported("an empty character class");
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == ']') {
        out_ += c;
        at_++;
        return {};
      }
      if (c == '[') return unsupported("a character class in a character class");
      if (c == '&' && next_is('&')) return unsupported("an intersection of character classes");
      if (c == '\\') {
        FS_TRY(escape(true));
      } else {
        out_ += c;
        at_++;
      }
    }
    return unsupported("a character class without an end");
  }

  /// (?: (?= (?! (?> (?<= (?<! (?i: and, only in front, (?i).
  Status group() {
    const std::string_view rest = in_.substr(at_ + 2);
    for (const std::string_view plain : {":", "=", "!", ">", "<=", "<!"})
      if (rest.starts_with(plain)) {
        out_ += fmt::format("(?{}", plain);
        at_ += 2 + plain.size();
        return {};
      }
    size_t end = 0;
    std::string flags;
    while (end < rest.size() && (rest[end] == 'i' || rest[end] == 'm' || rest[end] == '-'))
      flags += rest[end] == 'm' ? 's' : rest[end], end++;  // Ruby's m lets the dot match \n
    const bool opens_group = end < rest.size() && rest[end] == ':';
    const bool sets_rest = end < rest.size() && rest[end] == ')' && at_ == 0;
    if (end == 0 || !(opens_group || sets_rest)) return unsupported("a group of that kind");
    out_ += fmt::format("(?{}{}", flags, rest[end]);
    at_ += 3 + end;
    return {};
  }

  Status interval() {
    const size_t close = in_.find('}', at_);
    std::string_view body = close == in_.npos ? "" : in_.substr(at_ + 1, close - at_ - 1);
    const size_t comma = body.find(',');
    const auto all_digits = [](std::string_view text) {
      return std::all_of(text.begin(), text.end(), is_digit);
    };
    const std::string_view least = body.substr(0, comma);
    const std::string_view most = comma == body.npos ? "" : body.substr(comma + 1);
    const bool is_interval =
        body.size() > (comma == body.npos ? 0u : 1u) && all_digits(least) && all_digits(most);
    if (!is_interval) {  // a brace that stands for itself
      out_ += "\\{";
      at_++;
      return {};
    }
    const char behind = close + 1 < in_.size() ? in_[close + 1] : ' ';
    if (behind == '+') return unsupported("an interval with + behind it");
    if (behind == '?' && comma == body.npos) return unsupported("an exact count with ? behind it");
    out_ +=
        fmt::format("{{{}{}{}}}", least.empty() ? "0" : least, comma == body.npos ? "" : ",", most);
    at_ = close + 1;
    return {};
  }

  std::string_view in_;
  const std::string& where_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

Result<std::string> translate_regex(std::string_view pattern, const std::string& where) {
  return Translator(pattern, where).run();
}

}  // namespace fastserve
