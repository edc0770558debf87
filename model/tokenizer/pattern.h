// What Split and Replace look for: a text or a regular expression.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "model/tokenizer/fields.h"
#include "model/tokenizer/regex.h"

namespace fastserve {

class Pattern {
 public:
  /// The member "pattern" of a section: {"String": ...} or {"Regex": ...}.
  static Result<Pattern> parse(const Section& section);

  /// `text` with every match replaced by `content`, which is taken literally.
  Result<std::string> replace(std::string_view text, std::string_view content) const;
  Regex take_regex() && { return std::move(regex_); }

 private:
  Pattern(Regex regex, std::string literal)
      : regex_(std::move(regex)), literal_(std::move(literal)) {}
  Regex regex_;
  std::string literal_;  ///< empty: only the regex says what matches
};

}  // namespace fastserve
