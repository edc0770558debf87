// The "normalizer" of tokenizer.json: what is done to a text before it is cut.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "model/tokenizer/pattern.h"
#include "model/tokenizer/unicode.h"

namespace fastserve {

/// Threads: const calls from any thread.
/// Knows: NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip and sequences of them.
class Normalizer {
 public:
  /// `spec` may be null: then nothing changes.
  static Result<Normalizer> parse(const Json* spec, const std::string& where);

  bool changes_nothing() const { return steps_.empty(); }
  Result<std::string> apply(std::string_view text) const;

 private:
  struct Form {
    NormalForm form;
  };
  struct Lowercase {};
  struct Prepend {
    std::string prefix;
  };
  struct Replace {
    Pattern pattern;
    std::string content;
  };
  struct Strip {
    bool left, right;
  };
  using Step = std::variant<Form, Lowercase, Prepend, Replace, Strip>;

  Status add(const Section& section);
  static Result<std::string> apply(const Step& step, std::string text);

  std::vector<Step> steps_;
};

}  // namespace fastserve
